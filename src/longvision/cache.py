"""The folder for what is made once and used again: compiled kernels, images of large sets."""

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "LONGVISION_CACHE"


def user_cache() -> Path | None:
    """LONGVISION_CACHE, or the user's cache folder; None where there is neither."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    if not base:
        base = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    try:
        return Path(base).expanduser() / "longvision"
    except RuntimeError:  # no home
        return None
