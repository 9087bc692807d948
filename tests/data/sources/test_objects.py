import numpy as np
import pytest
import torch
from PIL import Image

from longvision.data.io.headers import read_header
from longvision.data.sources.base import ImageSet
from longvision.data.sources.objects import (
    ImageRecord,
    as_target,
    check_files,
    cut_to,
    has_area,
    is_outside,
    read_objects,
)
from longvision.errors import UserError


def test_a_target_without_objects():
    target = as_target(3, [], [])
    assert target.image_id == 3
    assert (target.boxes.shape, target.boxes.dtype) == ((0, 4), torch.float32)
    assert (target.labels.shape, target.labels.dtype) == ((0,), torch.int64)
    assert (target.iscrowd.shape, target.iscrowd.dtype) == ((0,), torch.bool)
    assert target.masks is None


def test_some_objects_of_a_target():
    masks_NHW = torch.rand(3, 4, 5) > 0.5
    target = as_target(
        0, [[0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3]], [5, 6, 7], [False, True, False], masks_NHW.numpy()
    )
    some = target.select(~target.iscrowd)
    assert some.labels.tolist() == [5, 7]
    assert some.boxes[:, 0].tolist() == [0, 2]
    assert torch.equal(some.masks, masks_NHW[[0, 2]])
    assert some.image_id == 0


@pytest.mark.parametrize(
    "box, outside",
    [
        ((0, 0, 20, 10), False),
        ((-0.9, 0, 20.9, 10), False),
        ((0, -1.1, 20, 10), True),
        ((0, 0, 21.1, 10), True),
        ((0, 0, 20, 11.1), True),
        ((float("nan"), 0, 20, 10), True),
        ((0, 0, float("inf"), 10), True),
    ],
)
def test_a_pixel_over_the_edge_is_tolerated(box, outside):
    assert is_outside(box, height=10, width=20) is outside


def test_a_box_is_cut_to_its_image():
    assert cut_to((-0.5, 1, 20.5, 10.5), 10, 20) == (0, 1, 20, 10)
    assert has_area((0, 0, 0.1, 0.1))
    assert not has_area((3, 3, 3, 4))
    assert not has_area((3, 3, 4, 2))


@pytest.fixture
def record(tmp_path):
    """A file of 6x8 pixels (height x width) and its record."""
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    return ImageRecord(str(tmp_path / "a.png"), 0, 6, 8)


def test_files_that_fit_pass(record):
    check_files([record], "x.json")


def test_missing_and_broken_files_and_other_sizes_are_told(record, tmp_path):
    with pytest.raises(UserError, match=r"^images that x\.json lists do not exist \(.*b\.png\): add them"):
        check_files([record, ImageRecord(str(tmp_path / "b.png"), 1, 6, 8)], "x.json")
    (tmp_path / "c.png").write_text("no image")
    broken = str(tmp_path / "c.png")
    assert check_files([record, ImageRecord(broken, 1, 6, 8)], "x.json") == ([], [broken])
    with pytest.raises(
        UserError, match=r"^images have another size than x\.json says \(a\.png is 8 wide and 6 high, not 6 wide"
    ):
        check_files([ImageRecord(record.file, 0, 8, 6)], "x.json")


def test_an_image_on_its_side_has_the_size_it_is_read_in(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert read_header(tmp_path / "a.jpg").size == (8, 6)
    record = ImageRecord(str(tmp_path / "a.jpg"), 0, 8, 6)
    image, _ = read_objects(record)
    assert (image.height, image.width) == (8, 6)


def test_images_are_read_in_colour_with_their_name(record):
    read = ImageSet([record], read_objects)
    image, target = read[0]
    assert (image.mode, len(target.labels)) == ("RGB", 0)
    assert np.asarray(image).shape == (6, 8, 3)


def test_an_image_exchanged_since_the_check_is_not_read_wrongly(record):
    Image.new("RGB", (9, 9)).save(record.file)
    with pytest.raises(UserError, match="is 9 wide and 9 high, its labels are of 8 wide and 6 high"):
        read_objects(record)
