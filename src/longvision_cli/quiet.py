"""Lightning's advice is for those who write a loop; a person who runs a command needs none of it."""

import logging
import os
import sys
import warnings
from typing import Any

from longvision.text import one_line

# Each is true of every run of ours and says nothing about this one.
OF_EVERY_RUN = (
    "does not have many workers",  # small sets load fastest in the main process
    "is smaller than the logging interval",
    "Checkpoint directory .* exists and is not empty",  # a run that goes on
    "The dirpath has changed",  # and was moved
    "callbacks used to create the checkpoint",  # and has another metric: the best by that one begins anew
    "LeafSpec",
    "in eval mode at the start of training",  # what is frozen is
)


def quiet() -> None:
    """Only what concerns the user, a line each."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in OF_EVERY_RUN:
        warnings.filterwarnings("ignore", message=f".*{text}")
    for category in (DeprecationWarning, FutureWarning):  # for those who call a library
        warnings.filterwarnings("ignore", category=category)
    warnings.showwarning = _one_line


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"longvision: warning: {one_line(str(message))}", file=sys.stderr)
