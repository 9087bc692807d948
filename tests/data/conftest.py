import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2].parent / "shared"


@pytest.fixture
def shared_data() -> Path:
    """The folder of real sets, which a checkout does not have to have."""
    folder = Path(os.environ.get("LONGVISION_SHARED", BESIDE)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no development data in {folder}")
    return folder
