import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("lightning")

from longvision.data.config import MaskFolderData, ScatteredSegmentationData
from longvision.data.sources.mask_folder import MaskFolderSource
from longvision.errors import UserError
from longvision.types import IGNORE


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def picture(height=6, width=8):
    return np.full((height, width, 3), 90)


def mask(*values, height=6, width=8):
    return np.resize(np.array(values or (0, 1), np.uint8), (height, width))


def fill(root, image: str, truth: str, count=2, values=(0, 1)):
    """`count` images and masks; * in the two names is the image's number."""
    for number in range(count):
        save(root / image.replace("*", f"{number:02}"), picture())
        save(root / truth.replace("*", f"{number:02}"), mask(*values))


def test_images_with_their_masks(tmp_path):
    fill(tmp_path, "train/*.png", "trainannot/*.png")
    fill(tmp_path, "val/*.png", "valannot/*_L.png", 3)
    source = MaskFolderSource(tmp_path)
    assert [len(source.split(split)) for split in ("train", "val")] == [2, 3] and not source.has_test
    image, truth = source.split("val")[2]
    assert image.mode == "RGB" and truth.dtype == np.uint8 and truth.tolist() == mask().tolist()
    assert source.split("val").items[2][0].endswith("02.png")
    for split in ("train", "val"):
        source.check(split)
    fill(tmp_path, "test/*.png", "testannot/*.png")
    source = MaskFolderSource(tmp_path)
    assert source.has_test and len(source.split("test")) == 2


# what the masks mean


def test_without_a_class_file_classes_are_numbered_to_the_highest_value(tmp_path):
    fill(tmp_path, "train/*.png", "trainannot/*.png", values=(0, 1, 255))
    fill(tmp_path, "val/*.png", "valannot/*.png", values=(0, 3, 2, 9))
    assert MaskFolderSource(tmp_path, ignore=9).classes == ["class 0", "class 1", "class 2", "class 3"]
    assert MaskFolderSource(tmp_path, ignore=9, reduce_zero_label=True).classes == ["class 0", "class 1", "class 2"]
    with pytest.raises(UserError, match="and no 4: give a classes_file"):
        MaskFolderSource(tmp_path)


def test_black_and_white_masks_show_two_classes(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", values=(0, 255))
    source = MaskFolderSource(tmp_path)
    assert source.classes == ["class 0", "class 1"]
    source.check("train")
    assert set(np.unique(source.split("train")[0][1])) == {0, 1}


def test_255_that_a_class_file_does_not_call_a_class(tmp_path):
    """It would train on one class and be right everywhere."""
    fill(tmp_path, "images/*.png", "masks/*.png", values=(0, 255))
    (tmp_path / "names.txt").write_text("background\nvessel")
    with pytest.raises(UserError, match=r'show only background: .* "binary": true'):
        MaskFolderSource(tmp_path, classes_file=str(tmp_path / "names.txt")).check("train")
    (tmp_path / "names.json").write_text('{"classes": ["background", "vessel"], "binary": true}')
    MaskFolderSource(tmp_path, classes_file=str(tmp_path / "names.json")).check("train")


def test_masks_in_colour(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png")
    for number in (0, 1):
        save(tmp_path / f"masks/{number:02}.png", np.array([(200, 0, 0), (0, 200, 0)], np.uint8)[mask()])
    with pytest.raises(UserError, match="is in colour: give a classes_file"):
        MaskFolderSource(tmp_path)
    (tmp_path / "names.txt").write_text("0 200 0 grass\n200 0 0 poppy")
    source = MaskFolderSource(tmp_path, classes_file=str(tmp_path / "names.txt"))
    source.check("train")
    assert source.classes == ["grass", "poppy"] and source.palette == [(0, 200, 0), (200, 0, 0)]
    assert source.split("train")[0][1][0, :2].tolist() == [1, 0]


def test_zero_is_reduced(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", values=(0, 1, 2))
    (tmp_path / "names.txt").write_text("wall\nbuilding")
    source = MaskFolderSource(tmp_path, classes_file=str(tmp_path / "names.txt"), reduce_zero_label=True)
    source.check("train")
    assert source.split("train")[0][1][0, :3].tolist() == [255, 0, 1]


def test_the_argument_goes_before_what_the_class_file_ignores(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", values=(0, 1, 7))
    (tmp_path / "names.json").write_text('{"classes": ["a", "b"], "ignore": 7}')
    MaskFolderSource(tmp_path, classes_file=str(tmp_path / "names.json")).check("train")
    with pytest.raises(UserError, match="the value 7"):
        MaskFolderSource(tmp_path, classes_file=str(tmp_path / "names.json"), ignore=8).check("train")
    with pytest.raises(UserError, match="ignore -1"):
        MaskFolderSource(tmp_path, ignore=-1)


# faults


def test_every_kind_of_fault_is_told_in_one_sentence(tmp_path):
    fill(tmp_path, "train/*.png", "trainannot/*.png", 16)
    fill(tmp_path, "val/*.png", "valannot/*.png")
    (tmp_path / "names.txt").write_text("a\nb")
    save(tmp_path / "trainannot/03.png", mask(width=9))
    save(tmp_path / "trainannot/05.png", mask(0, 1, 2, 77))
    (tmp_path / "trainannot/07.png").unlink()
    (tmp_path / "trainannot/09.png").write_bytes(b"\x89PNG and no more")
    (tmp_path / "train/11.png").write_text("no image")
    source = MaskFolderSource(tmp_path, classes_file=str(tmp_path / "names.txt"))
    source.check("val")
    with pytest.raises(UserError) as caught:
        source.check("train")
    said = str(caught.value)
    assert said.startswith(f"5 of 16 images of {tmp_path} (train) cannot be used: ") and "\n" not in said
    for words in (
        "train/03.png is 8 wide and 6 high, its mask 9 wide and 6 high",
        "trainannot/05.png has the values 2, 77: expected 0 to 1, or 255",
        "train/07.png has no mask",
        "trainannot/09.png is not an image",
        "train/11.png)",  # no image either
    ):
        assert words in said
    with pytest.raises(UserError, match="8 wide and 6 high, its mask 9 wide and 6 high"):
        _ = source.split("train")[3]
    with pytest.raises(UserError, match="has no mask"):
        _ = source.split("train")[7]


def test_the_first_ten_faults_are_named(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", 20)
    for number in range(20):
        save(tmp_path / f"masks/{number:02}.png", mask(height=7))
    with pytest.raises(UserError, match="18 of 18 images") as caught:
        MaskFolderSource(tmp_path).check("train")
    said = str(caught.value)
    assert said.count("its mask") == 1 and said.count("images/") == 11 and said.endswith("…)")


def test_an_image_lying_on_its_side_is_measured_upright(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png")
    for number in (0, 1):
        (tmp_path / f"images/{number:02}.png").unlink()
        turned = Image.new("RGB", (6, 8))
        exif = turned.getexif()
        exif[0x0112] = 6
        turned.save(tmp_path / f"images/{number:02}.jpg", exif=exif)
    source = MaskFolderSource(tmp_path)
    source.check("train")
    image, truth = source.split("train")[0]
    assert image.size == (8, 6) and truth.shape == (6, 8)


# batches


def test_batches_of_a_folder(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", 20)
    data = MaskFolderData(str(tmp_path), size=(16, 24), batch_size=3, workers=0, resize="fit").build()
    data.setup("fit")
    images, truths = next(iter(data.train_dataloader()))
    assert [tuple(image.shape) for image in images] == [(3, 16, 24)] * 3
    assert [tuple(truth.shape) for truth in truths] == [(16, 24)] * 3
    (image,), (truth,) = next(iter(data.val_dataloader()))
    assert image.shape == (3, 16, 21) and truth.shape == (6, 8) and truth.dtype == torch.int64
    assert truth.tolist() == mask().tolist()
    picture, seen, truth = data.sample("val", 0)
    assert picture.size == (8, 6) and seen.shape == (3, 16, 21) and truth.shape == (6, 8)
    with pytest.raises(UserError, match="no test images"):
        data.images("test")


def test_setup_tells_of_faults_before_training(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", 3)
    for number in range(3):
        save(tmp_path / f"masks/{number:02}.png", mask(height=7))
    with pytest.raises(UserError, match="cannot be used"):
        MaskFolderData(str(tmp_path), workers=0).build().setup("fit")


def test_batches_of_the_embedded_set():
    pytest.importorskip("sklearn")
    data = ScatteredSegmentationData(size=(48, 64), channels=3, pictures=9, batch_size=4, workers=0).build()
    data.setup()
    images, truths = next(iter(data.train_dataloader()))
    assert [tuple(image.shape) for image in images] == [(3, 48, 64)] * 4 and truths[0].shape == (48, 64)
    assert len(data.images("train")) == 9 and data.has_test


def folder_set(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", 3)
    return MaskFolderData(str(tmp_path), size=8, batch_size=1, workers=0).build()


def scattered_set(_):
    pytest.importorskip("sklearn")
    return ScatteredSegmentationData(size=48, pictures=3, batch_size=1, workers=0).build()


@pytest.mark.parametrize("data_of", [folder_set, scattered_set])
def test_worker_processes_load_what_the_main_one_does(tmp_path, data_of):
    """What a worker gets is a pickle of the set and its transform."""
    dataset = data_of(tmp_path).train_dataloader().dataset
    copy = pickle.loads(pickle.dumps(dataset))
    torch.manual_seed(1)
    theirs = copy[0]
    torch.manual_seed(1)
    ours = dataset[0]
    assert torch.equal(theirs[0], ours[0]) and torch.equal(theirs[1], ours[1])


# real sets


@pytest.mark.shared
def test_camvid(shared):
    data = MaskFolderData(
        str(shared / "data" / "camvid"), classes_file="camvid", size=(352, 480), batch_size=2, workers=0
    ).build()
    data.setup("fit")
    assert [len(data.images("train")), len(data.images("val")), data.has_test] == [123, 101, False]
    assert data.classes[0] == "Sky" and len(data.classes) == 11
    counts = sum(np.bincount(data.images("val")[index][1].ravel(), minlength=256) for index in range(0, 101, 10))
    assert counts[11:IGNORE].sum() == 0 and counts[IGNORE] > 0
    assert counts[3] > counts[8] > counts[2]  # more road than car, more car than pole
    image, truth = data.images("val")[0]
    sky = np.asarray(image.convert("L"))[truth == 0].mean()
    assert image.size == (480, 360) and sky > np.asarray(image.convert("L"))[truth == 3].mean()


@pytest.mark.shared
def test_chasedb1(shared):
    folder = str(shared / "data" / "chasedb1")
    data = MaskFolderData(folder, classes_file="chasedb1", size=128, workers=0).build()
    data.setup("fit")
    assert data.classes == ["background", "vessel"]
    names = {split: [Path(file).name for file, _ in data.images(split).items] for split in ("train", "val", "test")}
    assert (names["train"][0], names["train"][-1]) == ("Image_01L.jpg", "Image_09R.jpg")
    assert names["val"] == ["Image_10L.jpg", "Image_10R.jpg"]
    assert (names["test"][0], names["test"][-1]) == ("Image_11L.jpg", "Image_14R.jpg")
    assert [len(data.images(split)) for split in ("train", "val", "test")] == [18, 2, 8]
    image, truth = data.images("val")[0]
    grey = np.asarray(image.convert("L")).astype(int)
    assert truth.shape == (960, 999) and 0.05 < (truth == 1).mean() < 0.15
    assert set(np.unique(truth)) == {0, 1}
    seen = grey > 20  # the retina, without the black around it
    assert grey[(truth == 1) & seen].mean() < grey[(truth == 0) & seen].mean()
    assert np.array_equal(MaskFolderSource(folder).split("val")[0][1], truth)  # without a class file too


def test_ade20k_has_150_classes_after_zero_is_reduced(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", values=(0, 1, 150))
    source = MaskFolderSource(tmp_path, classes_file="ade20k", reduce_zero_label=True)
    source.check("train")
    assert len(source.classes) == len(set(source.classes)) == len(set(source.palette)) == 150
    at = {1: "wall", 22: "water", 50: "fireplace", 75: "computer", 100: "buffet", 125: "microwave", 150: "flag"}
    assert {value: source.classes[value - 1] for value in at} == at
    assert source.split("train")[0][1][0, :3].tolist() == [255, 0, 149]
