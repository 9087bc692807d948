import subprocess
import sys

import pytest

import longvision.data

HEAVY = ("lightning", "sklearn", "pyarrow", "matplotlib")


@pytest.mark.parametrize(
    "statement",
    [
        "from longvision.data import read_image, find_images, Preprocess, Augment",
        "import longvision.data.io.images, longvision.data.transforms.classification",
    ],
)
def test_reading_a_picture_needs_no_training_library(statement):
    script = f"{statement}\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert [name for name in longvision.data.__all__ if not hasattr(longvision.data, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = longvision.data.Nothing
