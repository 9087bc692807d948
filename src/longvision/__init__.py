"""Vision backbones whose cost grows with the number of tokens. Importing it registers the models with timm:

import longvision, timm
model = timm.create_model("vim_tiny_patch16_224")
"""

import sys

from longvision.version import __version__


def _is_for_the_command() -> bool:
    """Whether `longvision` or `python -m longvision` runs; of the latter, Python has not yet put the words in place."""
    by_name = "-m" in sys.orig_argv and sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == ["longvision"]
    return "longvision_cli.main" in sys.modules or (by_name and sys.argv[:1] == ["-m"])


# Registering loads torch, which takes seconds. The command tells a mistake before that: it looks at options, files and
# names first, and imports `longvision.models` itself when there is work to do.
if not _is_for_the_command():
    from longvision import models

__all__ = ["__version__", "models"]
