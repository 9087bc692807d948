import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from longvision.data.sources.objects import (
    Annotated,
    PictureFiles,
    Shelf,
    as_target,
    check_files,
    cut_to,
    has_area,
    is_outside,
    refuse,
    upright_size,
    without_area,
)


def test_a_target_without_objects():
    target = as_target(3, [], [])
    assert target.image_id == 3
    assert (target.boxes.shape, target.boxes.dtype) == ((0, 4), torch.float32)
    assert (target.labels.shape, target.labels.dtype) == ((0,), torch.int64)
    assert (target.iscrowd.shape, target.iscrowd.dtype) == ((0,), torch.bool)
    assert target.masks is None


def test_some_objects_of_a_target():
    masks_NHW = torch.rand(3, 4, 5) > 0.5
    target = as_target(0, [[0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3]], [5, 6, 7], [False, True, False], masks_NHW)
    some = target.select(~target.iscrowd)
    assert some.labels.tolist() == [5, 7]
    assert some.boxes[:, 0].tolist() == [0, 2]
    assert torch.equal(some.masks, masks_NHW[[0, 2]])
    assert some.image_id == 0


def test_a_shelf_gives_back_what_was_put_there():
    records = [
        Annotated(f"{i}.jpg", i, 4, 5, [(0.0, 0.0, 1.5, i)], [i], [False], [[[0, 0, 1, 1, 1, 0]]]) for i in range(5)
    ]
    shelf = pickle.loads(pickle.dumps(Shelf(records)))
    assert list(shelf) == records
    assert (len(shelf), shelf[-1]) == (5, records[-1])
    with pytest.raises(IndexError):
        shelf[5]


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


def test_faults_are_named_to_the_tenth():
    refuse([], "boxes are wrong", "correct them")
    with pytest.raises(ValueError, match=r"^12 boxes are wrong \(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …\): correct them$"):
        refuse([str(i) for i in range(12)], "boxes are wrong", "correct them")


def test_few_boxes_without_area_are_left_out_with_a_word():
    with pytest.warns(
        UserWarning, match=r"^1 of the 100 boxes in x\.json have no area \(annotation 7\): they are left"
    ):
        without_area(["annotation 7"], 100, "x.json")
    with pytest.raises(ValueError, match=r"^1 of the 99 boxes in x\.json have no area \(annotation 7\): correct or"):
        without_area(["annotation 7"], 99, "x.json")
    with warnings.catch_warnings(action="error"):
        without_area([], 100, "x.json")


@pytest.fixture
def picture(tmp_path):
    """A file of 6x8 pixels (height x width) and its record."""
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    return Annotated(str(tmp_path / "a.png"), 0, 6, 8)


def test_files_that_fit_pass(picture):
    check_files([picture], "x.json")


def test_missing_and_broken_files_and_other_sizes_are_named(picture, tmp_path):
    with pytest.raises(ValueError, match=r"^1 images that x\.json lists do not exist \(.*b\.png\): add them"):
        check_files([picture, Annotated(str(tmp_path / "b.png"), 1, 6, 8)], "x.json")
    (tmp_path / "c.png").write_text("no image")
    with pytest.raises(ValueError, match=r"^1 files that x\.json lists are not images \(.*c\.png\): replace"):
        check_files([picture, Annotated(str(tmp_path / "c.png"), 1, 6, 8)], "x.json")
    with pytest.raises(ValueError, match=r"^1 images have another size than x\.json says \(a\.png is 6x8, not 8x6\)"):
        check_files([Annotated(picture.file, 0, 8, 6)], "x.json")


def test_a_picture_on_its_side_has_the_size_it_is_read_in(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert upright_size(tmp_path / "a.jpg") == (8, 6)
    record = Annotated(str(tmp_path / "a.jpg"), 0, 8, 6)
    image, _ = PictureFiles([record])[0]
    assert (image.height, image.width) == (8, 6)


def test_pictures_are_read_in_colour_with_their_name(picture):
    pictures = PictureFiles(Shelf([picture]))
    image, target = pictures[0]
    assert (image.mode, len(target.labels), pictures.name(0)) == ("RGB", 0, "a.png")
    assert np.asarray(image).shape == (6, 8, 3)


def test_a_picture_exchanged_since_the_check_is_not_read_wrongly(picture):
    Image.new("RGB", (9, 9)).save(picture.file)
    with pytest.raises(ValueError, match="is 9x9, its labels 6x8"):
        PictureFiles([picture])[0]
