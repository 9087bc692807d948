import os

import pytest

from longvision.data.sources.pairs import find_pairs, match_masks


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def fill(root, image: str, mask: str, count=2):
    """`count` empty files each: images and masks are found, not opened. * in the two names is the image's number."""
    pairs = [(root / image.replace("*", f"{n:02}"), root / mask.replace("*", f"{n:02}")) for n in range(count)]
    for pair in pairs:
        for path in pair:
            touch(path)
    return [tuple(map(str, pair)) for pair in pairs]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        (
            "images/training/*.png annotations/training/*.png",
            "images/validation/*.png annotations/validation/*.png",
            None,
        ),
        ("train/*.png trainannot/*.png", "val/*.png valannot/*.png", "test/*.png testannot/*.png"),
        (
            "images/train/*.png masks/train/*.png",
            "images/val/*.png masks/val/*.png",
            "images/test/*.png masks/test/*.png",
        ),
        ("train/images/*.png train/masks/*_mask.png", "valid/images/*.png valid/masks/*_mask.png", None),
        ("images/train/a/*.jpg labels/train/a/*_L.png", "images/val/a/*.jpg labels/val/a/*_L.png", None),
    ],
)
def test_layouts(tmp_path, train, val, test):
    expected = {"train": fill(tmp_path, *train.split(), 4), "val": fill(tmp_path, *val.split(), 3)}
    if test:
        expected["test"] = fill(tmp_path, *test.split(), 2)
    assert find_pairs(tmp_path, 0, [])[0] == expected


@pytest.mark.parametrize("names", ["images/*.png masks/*.png", "train/images/*.png train/masks/*.png"])
def test_a_tenth_validates_where_nothing_else_does(tmp_path, names):
    fill(tmp_path, *names.split(), 20)
    first, again, other = (find_pairs(tmp_path, seed, [])[0] for seed in (0, 0, 1))
    assert len(first["train"]) == 18 and len(first["val"]) == 2
    assert sorted(first["train"] + first["val"]) == sorted(other["train"] + other["val"])
    assert first == again and first != other


def test_test_images_without_masks_are_not_used(tmp_path):
    fill(tmp_path, "images/train/*.png", "masks/train/*.png")
    fill(tmp_path, "images/val/*.png", "masks/val/*.png")
    touch(tmp_path / "images/test/0.png")
    assert set(find_pairs(tmp_path, 0, [])[0]) == {"train", "val"}


@pytest.mark.parametrize("folder", ["images/val", "val/images"])
def test_validation_images_without_masks(tmp_path, folder):
    fill(tmp_path, "images/train/*.png", "masks/train/*.png")
    touch(tmp_path / folder / "0.png")
    with pytest.raises(ValueError, match=r"val(/images)? has no folder of masks beside it"):
        find_pairs(tmp_path, 0, [])


def test_masks_by_the_beginning_of_their_name(tmp_path):
    for name in ("a", "a_1", "b", "c-x"):
        touch(tmp_path / f"images/{name}.jpg")
    for name in ("a_mask", "a_1_mask", "b", "b_colour", "c-x.seg", "stray"):
        touch(tmp_path / f"masks/{name}.png")
    found = match_masks(tmp_path / "images", tmp_path / "masks", [])
    assert [os.path.basename(mask) for _, mask in found] == ["a_mask.png", "a_1_mask.png", "b.png", "c-x.seg.png"]


def test_two_masks_for_an_image(tmp_path):
    touch(tmp_path / "images/a.jpg")
    for name in ("a_1stHO", "a_2ndHO"):
        touch(tmp_path / f"masks/{name}.png")
    with pytest.raises(ValueError, match=r"a has the masks .*1stHO.png, .*2ndHO.png: keep one"):
        match_masks(tmp_path / "images", tmp_path / "masks", [])


def test_folders_that_hold_nothing_usable(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_pairs(tmp_path / "none", 0, [])
    with pytest.raises(ValueError, match="has no images with masks, no folders: expected images/train"):
        find_pairs(tmp_path, 0, [])
    touch(tmp_path / "file")
    with pytest.raises(ValueError, match="is a file"):
        find_pairs(tmp_path / "file", 0, [])
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match="images has no images"):
        find_pairs(tmp_path, 0, [])
    touch(tmp_path / "images/a.png")
    touch(tmp_path / "masks/b.png")
    with pytest.raises(ValueError, match=r"none of the 1 images in .* has a mask"):
        find_pairs(tmp_path, 0, [])
    touch(tmp_path / "masks/a.png")
    with pytest.raises(ValueError, match="a single image"):
        find_pairs(tmp_path, 0, [])


def chase_names(root):
    pairs, _ = find_pairs(root, 0, [])
    return {split: [os.path.basename(image) for image, _ in found] for split, found in pairs.items()}


def test_no_patient_of_chasedb1_is_in_two_splits(tmp_path):
    """Not even where an image is missing."""
    for patient in range(1, 15):
        for side in "LR":
            touch(tmp_path / f"Image_{patient:02}{side}.jpg")
            touch(tmp_path / f"Image_{patient:02}{side}_1stHO.png")
    names = chase_names(tmp_path)
    assert [len(names[split]) for split in ("train", "val", "test")] == [18, 2, 8]
    assert names["val"] == ["Image_10L.jpg", "Image_10R.jpg"]
    (tmp_path / "Image_01L.jpg").unlink()
    names = chase_names(tmp_path)
    assert names["val"] == ["Image_10L.jpg", "Image_10R.jpg"]
    assert names["test"][::7] == ["Image_11L.jpg", "Image_14R.jpg"]


def test_part_of_chasedb1(tmp_path):
    touch(tmp_path / "Image_01L.jpg")
    with pytest.raises(ValueError, match="has 1 of CHASEDB1's 28 images"):
        find_pairs(tmp_path, 0, [])
