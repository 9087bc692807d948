"""Vision backbones whose cost grows with the number of tokens. Importing it registers the models with timm:

import longvision, timm
model = timm.create_model("vim_tiny_patch16_224")
"""

import sys

from longvision.version import __version__

# Registering loads torch, which takes seconds. The command tells a mistake before that: it looks at options, files and
# names first, and imports `longvision.models` itself when there is work to do.
if "longvision_cli.main" not in sys.modules:
    from longvision import models

__all__ = ["__version__", "models"]
