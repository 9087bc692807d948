"""Lightning's advice is for those who write a loop; a person who runs a command needs none of it."""

import logging
import os
import sys
import warnings
from typing import Any

NOT_FOR_USERS = (
    "does not have many workers",
    "is smaller than the logging interval",
    "LeafSpec",
    "Checkpoint directory",
    "The dirpath has changed",
    "tensorboardX",
    "`self.log",
    "You're resuming from a checkpoint that ended before",
    "pkg_resources",
    "This DataLoader will create",
    "could not find the monitored key",
    "Detected pickle protocol",
    "lr_scheduler.step",
    "Found .* module\\(s\\) in eval mode",
    "Trying to infer the `batch_size`",
)


def quiet() -> None:
    """Only what concerns the user, a line each."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in NOT_FOR_USERS:
        warnings.filterwarnings("ignore", message=f".*{text}")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.showwarning = _one_line


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"longvision: warning: {' '.join(str(message).split())}", file=sys.stderr)
