"""Large images are what the package is for: no limit of a library's in the way, and masks only where they are seen."""

import warnings

import pytest
from PIL import Image

from longvision.data.io.headers import read_header
from longvision.data.io.images import is_image, read_image
from longvision.data.transforms.input_spec import InputSpec
from longvision.errors import UnreadableImage, UserError


@pytest.fixture(autouse=True)
def _a_small_limit_of_pillows(monkeypatch):
    """Of 100 pixels: what is true of 200 million is true of 400."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert Image.MAX_IMAGE_PIXELS == 100  # others keep theirs


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "tif", "webp", "bmp", "ppm"])
@pytest.mark.parametrize("side", [12, 30])  # where Pillow warns, where it refuses
def test_a_file_that_is_named_is_no_attack(tmp_path, kind, side):
    path = tmp_path / f"large.{kind}"
    Image.new("RGB", (side, side), "red").save(path)
    assert read_image(path).size == (side, side) == read_header(path).size and is_image(path)
    assert InputSpec((14, 14), crop=1.0).evaluated(read_image(path)).shape == (3, 14, 14)


def test_beyond_the_limit_that_can_be_set(tmp_path, monkeypatch):
    Image.new("1", (30, 20)).save(tmp_path / "large.png")
    monkeypatch.setenv("LONGVISION_MAX_PIXELS", "599")
    with pytest.raises(UnreadableImage, match=r"large\.png has 30x20 pixels, more than 599 .*LONGVISION_MAX_PIXELS"):
        read_image(tmp_path / "large.png")
    monkeypatch.setenv("LONGVISION_MAX_PIXELS", "600")
    assert read_image(tmp_path / "large.png").size == (30, 20)
    for wrong in ("many", "-5", "0", "1e9"):
        monkeypatch.setenv("LONGVISION_MAX_PIXELS", wrong)
        with pytest.raises(UserError, match=wrong):
            read_image(tmp_path / "large.png")
