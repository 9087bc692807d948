"""`python -m longvision` is the command `longvision`."""

import sys

from longvision_cli.main import main

sys.exit(main())
