"""python -m longvision.compat SCRIPT [argument ...]: run somebody's script with our functions in the place of
mamba_ssm's and causal_conv1d's.

Processes that the script spawns, rather than forks, import it anew and have none of them, unless it calls
`longvision.compat.install()` itself.
"""

import runpy
import sys
import warnings
from pathlib import Path

from longvision.compat import install
from longvision.errors import MissingFileError, UserError

USAGE_ERROR = 2


def prepare() -> str:
    """As Python before it runs a script, and `install`; -> the script. Warnings are lines here."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise UserError("expected a script: python -m longvision.compat SCRIPT [argument ...]")
    script = Path(sys.argv[1])
    if not script.is_file():
        raise MissingFileError(f"{script}: no such file, expected a Python script")
    del sys.argv[0]
    if not sys.flags.safe_path:
        sys.path[0] = str(script.resolve().parent)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        install()
    for warning in found:
        print(f"longvision.compat: {warning.message}", file=sys.stderr)
    return str(script)


if __name__ == "__main__":
    try:
        script = prepare()
    except UserError as mistake:
        print(f"longvision.compat: error: {mistake}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    runpy.run_path(script, run_name="__main__")
