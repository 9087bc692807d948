import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("lightning")

from longvision.data.crops import DenseAugment, TrainCrop
from longvision.data.dense import IGNORE, DensePreprocess
from longvision.data.pairs import match
from longvision.data.scattered_sets import ScatteredSegmentation
from longvision.data.segmentation import (
    MaskFolderData,
    ScatteredSegmentationData,
    SegmentationFolder,
)

RAW = {"mean": (0.0,), "std": (1 / 255,)}  # images come out as their grey values


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def picture(height=6, width=8):
    return np.full((height, width, 3), 90)


def mask(*values, height=6, width=8):
    return np.resize(np.array(values or (0, 1), np.uint8), (height, width))


def fill(root, image: str, truth: str, count=2, values=(0, 1)):
    """`count` pictures and masks; * in the two names is the picture's number."""
    for number in range(count):
        save(root / image.replace("*", f"{number:02}"), picture())
        save(root / truth.replace("*", f"{number:02}"), mask(*values))


def ramp(height, width, down=False):
    """0 to 254, left to right or top to bottom."""
    row = np.linspace(0, 254, height if down else width).round().astype(np.uint8)
    return np.tile(row[:, None], (1, width)) if down else np.tile(row, (height, 1))


# what a training crop does


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 2.0), (0.1, 0.4)])
@pytest.mark.parametrize("resize", ["none", "short", "fit"])
def test_picture_and_mask_stay_on_each_other(down, scale, resize):
    values = ramp(150, 170, down)
    preprocess = DensePreprocess((96, 80), 1, **RAW, resize=resize)
    crop = TrainCrop(DenseAugment(scale, flip=0.5, photometric=0, most=1), preprocess)
    for _ in range(20):
        image, truth = crop(Image.fromarray(values), values)
        assert image.shape == (1, 96, 80) and image.dtype == torch.float32
        assert truth.shape == (96, 80) and truth.dtype == torch.int64
        counted = truth != IGNORE
        assert counted.any()
        # a pixel's neighbour is 254/149 away, 17 times that at a scale of 0.1, and the border lacks one side
        step = 254 / 149 / min(scale[0], preprocess.evaluated_size(150, 170)[0] * scale[0] / 150)
        assert (image[0] - truth)[counted].abs().max() <= step
        assert (image[0] - truth)[counted].mean().abs() < max(1.0, step / 8)


def test_flipped_or_not_they_agree():
    values = ramp(64, 64)
    for flip, falls in ((0.0, False), (1.0, True)):
        crop = TrainCrop(DenseAugment((1.0, 1.0), flip, 0, 1), DensePreprocess((64, 64), 1, **RAW))
        image, truth = crop(Image.fromarray(values), values)
        assert (truth[0, 0] > truth[0, -1]) == falls
        assert torch.equal(image[0].round().long(), truth)


def test_both_outcomes_of_a_flip_occur():
    values = ramp(64, 64)
    crop = TrainCrop(DenseAugment((1.0, 1.0), 0.5, 0, 1), DensePreprocess((64, 64), 1, **RAW))
    falls = [
        bool(truth[0, 0] > truth[0, -1]) for _, truth in (crop(Image.fromarray(values), values) for _ in range(30))
    ]
    assert 5 < sum(falls) < 25


def test_a_crop_equals_the_resized_picture_cut():
    """Only the window is computed: it holds what the whole picture, resized, would show there."""
    random = np.random.default_rng(0)
    values = random.integers(0, 255, (90, 70), np.uint8)
    crop = TrainCrop(DenseAugment((2.0, 2.0), 0, 0, 1), DensePreprocess((64, 48), 1, **RAW))
    image, _ = crop(Image.fromarray(values), values)
    whole = np.asarray(Image.fromarray(values).resize((140, 180), Image.Resampling.BILINEAR))
    windows = np.lib.stride_tricks.sliding_window_view(whole, (64, 48))
    assert np.abs(windows - image[0].numpy()).max((2, 3)).min() <= 1.01


def test_masks_are_never_blended():
    values = np.random.default_rng(0).choice(np.array([0, 7, 200, IGNORE], np.uint8), (80, 80))
    crop = TrainCrop(DenseAugment(most=1), DensePreprocess((64, 64), 1))
    for _ in range(20):
        assert set(crop(Image.fromarray(values), values)[1].unique().tolist()) <= {0, 7, 200, IGNORE}


def test_beyond_a_small_picture_is_the_mean_and_does_not_count():
    crop = TrainCrop(DenseAugment((1.0, 1.0), 0, 0, 1), DensePreprocess((8, 9)))
    image, truth = crop(Image.fromarray(np.full((5, 6, 3), 255, np.uint8)), np.ones((5, 6), np.uint8))
    assert (truth == 1).sum() == 30 and (truth[:5, :6] == 1).all() and (truth[5:] == IGNORE).all()
    assert (image[:, :5, :6] > 2).all()
    assert (image[:, 5:] == 0).all() and (image[:, :, 6:] == 0).all()


def test_crops_come_from_everywhere():
    values = ramp(40, 250)
    crop = TrainCrop(DenseAugment((1.0, 1.0), 0, 0, 1), DensePreprocess((40, 50), 1))
    lefts = [int(crop(Image.fromarray(values), values)[1][0, 0]) for _ in range(200)]
    assert min(lefts) < 10 and max(lefts) > 193


def test_a_crop_of_almost_one_class_is_drawn_again():
    values = np.zeros((40, 400), np.uint8)
    values[:, 200:240] = 1
    values[:20, 320:] = IGNORE

    def mixed(most):
        crop = TrainCrop(DenseAugment((1.0, 1.0), 0, 0, most), DensePreprocess((40, 40), 1))
        shown = [crop(Image.fromarray(values), values)[1] for _ in range(60)]
        return sum(bool((truth == 1).any()) for truth in shown) / len(shown)

    assert mixed(1.0) < 0.4  # 79 of 361 places
    assert mixed(0.75) > 0.6  # one of ten crops, where 60 places are fit


def test_colours_vary_and_truth_does_not():
    colours = Image.fromarray(np.random.default_rng(0).integers(60, 200, (32, 32, 3), np.uint8))
    truth = np.random.default_rng(1).integers(0, 3, (32, 32), np.uint8)
    for channels in (1, 3):
        preprocess = DensePreprocess((32, 32), channels)
        plain, _ = TrainCrop(DenseAugment((1.0, 1.0), 0, 0, 1), preprocess)(colours, truth)
        varied = TrainCrop(DenseAugment((1.0, 1.0), 0, 1, 1), preprocess)
        seen = [varied(colours, truth) for _ in range(5)]
        assert all(torch.equal(mask, torch.from_numpy(truth).long()) for _, mask in seen)
        assert all(image.shape == (channels, 32, 32) and not torch.equal(image, plain) for image, _ in seen)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"flip": 1.5}, "flip 1.5"),
        ({"photometric": -1}, "photometric -1"),
        ({"most": 0}, "most 0"),
    ],
)
def test_augmentation_that_cannot_be(arguments, words):
    with pytest.raises(ValueError, match=words):
        DenseAugment(**arguments)


# where the pictures lie


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
    for count, names in ((4, train), (3, val), (2, test)):
        if names:
            fill(tmp_path, *names.split(), count)
    source = SegmentationFolder(tmp_path)
    assert len(source.split("train")) == 4 and len(source.split("val")) == 3
    assert source.has_test == bool(test)
    assert not test or len(source.split("test")) == 2
    image, truth = source.split("val")[2]
    assert image.mode == "RGB" and truth.dtype == np.uint8 and truth.tolist() == mask().tolist()
    assert source.split("val").name(2).startswith("02.")
    for split in ("train", "val"):
        source.check(split)


@pytest.mark.parametrize("names", ["images/*.png masks/*.png", "train/images/*.png train/masks/*.png"])
def test_a_tenth_validates_where_nothing_else_does(tmp_path, names):
    fill(tmp_path, *names.split(), 20)
    first, again, other = (SegmentationFolder(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert len(first.split("train")) == 18 and len(first.split("val")) == 2
    assert sorted(first.pairs["train"] + first.pairs["val"]) == sorted(other.pairs["train"] + other.pairs["val"])
    assert first.pairs == again.pairs and first.pairs != other.pairs


def test_test_images_without_masks_are_not_used(tmp_path):
    fill(tmp_path, "images/train/*.png", "masks/train/*.png")
    fill(tmp_path, "images/val/*.png", "masks/val/*.png")
    save(tmp_path / "images/test/0.png", picture())
    assert not SegmentationFolder(tmp_path).has_test


@pytest.mark.parametrize("folder", ["images/val", "val/images"])
def test_validation_images_without_masks(tmp_path, folder):
    fill(tmp_path, "images/train/*.png", "masks/train/*.png")
    save(tmp_path / folder / "0.png", picture())
    with pytest.raises(ValueError, match="val has no folder of masks beside it"):
        SegmentationFolder(tmp_path)


def test_masks_by_the_beginning_of_their_name(tmp_path):
    for name in ("a", "a_1", "b", "c-x"):
        save(tmp_path / f"images/{name}.jpg", picture())
    for name in ("a_mask", "a_1_mask", "b", "b_colour", "c-x.seg", "stray"):
        save(tmp_path / f"masks/{name}.png", mask())
    found = match(tmp_path / "images", tmp_path / "masks")
    assert [os.path.basename(mask) for _, mask in found] == ["a_mask.png", "a_1_mask.png", "b.png", "c-x.seg.png"]


def test_two_masks_for_a_picture(tmp_path):
    save(tmp_path / "images/a.jpg", picture())
    for name in ("a_1stHO", "a_2ndHO"):
        save(tmp_path / f"masks/{name}.png", mask())
    with pytest.raises(ValueError, match=r"a has the masks .*1stHO.png, .*2ndHO.png: keep one"):
        match(tmp_path / "images", tmp_path / "masks")


def test_folders_that_hold_nothing_usable(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        SegmentationFolder(tmp_path / "none")
    with pytest.raises(ValueError, match="has no images with masks: expected images/train with masks/train"):
        SegmentationFolder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        SegmentationFolder(tmp_path / "file")
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match="images has no images"):
        SegmentationFolder(tmp_path)
    save(tmp_path / "images/a.png", picture())
    save(tmp_path / "masks/b.png", mask())
    with pytest.raises(ValueError, match=r"none of the 1 images in .* has a mask"):
        SegmentationFolder(tmp_path)
    save(tmp_path / "masks/a.png", mask())
    with pytest.raises(ValueError, match="a single image"):
        SegmentationFolder(tmp_path)


# what the masks mean


def test_without_a_class_file_classes_are_numbered_to_the_highest_value(tmp_path):
    fill(tmp_path, "train/*.png", "trainannot/*.png", values=(0, 1, 255))
    fill(tmp_path, "val/*.png", "valannot/*.png", values=(0, 3, 9))
    assert SegmentationFolder(tmp_path, ignore=9).classes == ["class 0", "class 1", "class 2", "class 3"]
    assert SegmentationFolder(tmp_path, ignore=9, reduce_zero_label=True).classes == ["class 0", "class 1", "class 2"]
    assert len(SegmentationFolder(tmp_path).palette) == 10


def test_black_and_white_masks_show_two_classes(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", values=(0, 255))
    source = SegmentationFolder(tmp_path)
    assert source.classes == ["class 0", "class 1"]
    source.check("train")
    assert set(np.unique(source.split("train")[0][1])) == {0, 1}


def test_255_that_a_class_file_does_not_call_a_class(tmp_path):
    """It would train on one class and be right everywhere."""
    fill(tmp_path, "images/*.png", "masks/*.png", values=(0, 255))
    (tmp_path / "names.txt").write_text("background\nvessel")
    with pytest.raises(ValueError, match=r'show only background: .* "binary": true'):
        SegmentationFolder(tmp_path, classes_file=str(tmp_path / "names.txt")).check("train")
    (tmp_path / "names.json").write_text('{"classes": ["background", "vessel"], "binary": true}')
    SegmentationFolder(tmp_path, classes_file=str(tmp_path / "names.json")).check("train")


def test_masks_in_colour(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png")
    for number in (0, 1):
        save(tmp_path / f"masks/{number:02}.png", np.array([(200, 0, 0), (0, 200, 0)], np.uint8)[mask()])
    with pytest.raises(ValueError, match="is in colour: give a classes_file"):
        SegmentationFolder(tmp_path)
    (tmp_path / "names.txt").write_text("0 200 0 grass\n200 0 0 poppy")
    source = SegmentationFolder(tmp_path, classes_file=str(tmp_path / "names.txt"))
    source.check("train")
    assert source.classes == ["grass", "poppy"] and source.palette == [(0, 200, 0), (200, 0, 0)]
    assert source.split("train")[0][1][0, :2].tolist() == [1, 0]


def test_zero_is_reduced(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", values=(0, 1, 2))
    (tmp_path / "names.txt").write_text("wall\nbuilding")
    source = SegmentationFolder(tmp_path, classes_file=str(tmp_path / "names.txt"), reduce_zero_label=True)
    source.check("train")
    assert source.split("train")[0][1][0, :3].tolist() == [255, 0, 1]


def test_the_argument_goes_before_what_the_class_file_ignores(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", values=(0, 1, 7))
    (tmp_path / "names.json").write_text('{"classes": ["a", "b"], "ignore": 7}')
    SegmentationFolder(tmp_path, classes_file=str(tmp_path / "names.json")).check("train")
    with pytest.raises(ValueError, match="the value 7"):
        SegmentationFolder(tmp_path, classes_file=str(tmp_path / "names.json"), ignore=8).check("train")
    with pytest.raises(ValueError, match="ignore -1"):
        SegmentationFolder(tmp_path, ignore=-1)


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
    source = SegmentationFolder(tmp_path, classes_file=str(tmp_path / "names.txt"))
    source.check("val")
    with pytest.raises(ValueError) as caught:
        source.check("train")
    said = str(caught.value)
    assert said.startswith(f"5 of 16 pictures of {tmp_path} (train) cannot be used: ") and "\n" not in said
    for words in (
        "train/03.png is 6x8, its mask 6x9",
        "trainannot/05.png has the values 2, 77: expected 0 to 1, or 255",
        "train/07.png has no mask",
        "trainannot/09.png cannot be read as a mask",
        "train/11.png is not an image",
    ):
        assert words in said
    with pytest.raises(ValueError, match="6x8, its mask 6x9"):
        _ = source.split("train")[3]
    with pytest.raises(ValueError, match="has no mask"):
        _ = source.split("train")[7]


def test_the_first_ten_faults_are_named(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", 20)
    for number in range(20):
        save(tmp_path / f"masks/{number:02}.png", mask(height=7))
    with pytest.raises(ValueError, match="18 of 18 pictures") as caught:
        SegmentationFolder(tmp_path).check("train")
    assert str(caught.value).count("its mask") == 10 and str(caught.value).endswith("; …")


def test_a_picture_lying_on_its_side_is_measured_upright(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png")
    for number in (0, 1):
        (tmp_path / f"images/{number:02}.png").unlink()
        turned = Image.new("RGB", (6, 8))
        exif = turned.getexif()
        exif[0x0112] = 6
        turned.save(tmp_path / f"images/{number:02}.jpg", exif=exif)
    source = SegmentationFolder(tmp_path)
    source.check("train")
    image, truth = source.split("train")[0]
    assert image.size == (8, 6) and truth.shape == (6, 8)


# batches


def test_batches_of_a_folder(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", 20)
    data = MaskFolderData(str(tmp_path), size=(16, 24), batch_size=3, workers=0, resize="fit")
    data.setup("fit")
    images, truths = next(iter(data.train_dataloader()))
    assert [tuple(image.shape) for image in images] == [(3, 16, 24)] * 3
    assert [tuple(truth.shape) for truth in truths] == [(16, 24)] * 3
    (image,), (truth,) = next(iter(data.val_dataloader()))
    assert image.shape == (3, 16, 21) and truth.shape == (6, 8) and truth.dtype == torch.int64
    assert truth.tolist() == mask().tolist()
    picture, seen, truth = data.sample("val", 0)
    assert picture.size == (8, 6) and seen.shape == (3, 16, 21) and truth.shape == (6, 8)
    with pytest.raises(ValueError, match="no test images"):
        data.images("test")


def test_setup_tells_of_faults_before_training(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", 3)
    for number in range(3):
        save(tmp_path / f"masks/{number:02}.png", mask(height=7))
    with pytest.raises(ValueError, match="cannot be used"):
        MaskFolderData(str(tmp_path), workers=0).setup("fit")


def test_the_embedded_set():
    pytest.importorskip("sklearn")
    source = ScatteredSegmentation((48, 64), pictures=3)
    assert source.classes == ["background", *"0123456789"] and len(set(source.palette)) == 11
    assert [len(source.split(split)) for split in ("train", "val", "test")] == [3, 200, 400]
    assert source.split("test").name(7) == "test picture 7"
    image, truth = source.split("train")[1]
    assert image.size == (64, 48) and truth.shape == (48, 64) and truth.max() > 0
    data = ScatteredSegmentationData(size=(48, 64), channels=3, pictures=9, batch_size=4, workers=0)
    data.setup()
    images, truths = next(iter(data.train_dataloader()))
    assert [tuple(image.shape) for image in images] == [(3, 48, 64)] * 4 and truths[0].shape == (48, 64)
    assert len(data.images("train")) == 9 and data.has_test


def test_worker_processes_load_what_the_main_one_does(tmp_path):
    """What a worker gets is a pickle of the set and its transform."""
    fill(tmp_path, "images/*.png", "masks/*.png", 3)
    data = MaskFolderData(str(tmp_path), size=8, batch_size=1, workers=0)
    loader = data.train_dataloader()
    copy = pickle.loads(pickle.dumps(loader.dataset))
    torch.manual_seed(1)
    theirs = copy[0]
    torch.manual_seed(1)
    ours = loader.dataset[0]
    assert torch.equal(theirs[0], ours[0]) and torch.equal(theirs[1], ours[1])


# real sets


@pytest.mark.shared
def test_camvid(shared):
    data = MaskFolderData(str(shared / "data" / "camvid"), "camvid", size=(352, 480), batch_size=2, workers=0)
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
    data = MaskFolderData(folder, "chasedb1", size=128, workers=0)
    data.setup("fit")
    assert data.classes == ["background", "vessel"]
    assert [data.images("train").name(index) for index in (0, 17)] == ["Image_01L.jpg", "Image_09R.jpg"]
    assert [data.images("val").name(index) for index in (0, 1)] == ["Image_10L.jpg", "Image_10R.jpg"]
    assert [data.images("test").name(index) for index in (0, 7)] == ["Image_11L.jpg", "Image_14R.jpg"]
    assert [len(data.images(split)) for split in ("train", "val", "test")] == [18, 2, 8]
    image, truth = data.images("val")[0]
    grey = np.asarray(image.convert("L")).astype(int)
    assert truth.shape == (960, 999) and 0.05 < (truth == 1).mean() < 0.15
    assert set(np.unique(truth)) == {0, 1}
    seen = grey > 20  # the retina, without the black around it
    assert grey[(truth == 1) & seen].mean() < grey[(truth == 0) & seen].mean()
    assert np.array_equal(SegmentationFolder(folder).split("val")[0][1], truth)  # without a class file too


def chase_names(source, split):
    return [source.split(split).name(index) for index in range(len(source.split(split)))]


def test_no_patient_of_chasedb1_is_in_two_splits(tmp_path):
    """Not even where a picture is missing."""
    for patient in range(1, 15):
        for side in "LR":
            save(tmp_path / f"Image_{patient:02}{side}.jpg", picture())
            save(tmp_path / f"Image_{patient:02}{side}_1stHO.png", mask())
    source = SegmentationFolder(tmp_path)
    assert source.has_test
    assert [len(source.split(split)) for split in ("train", "val", "test")] == [18, 2, 8]
    assert chase_names(source, "val") == ["Image_10L.jpg", "Image_10R.jpg"]
    (tmp_path / "Image_01L.jpg").unlink()
    source = SegmentationFolder(tmp_path)
    assert chase_names(source, "val") == ["Image_10L.jpg", "Image_10R.jpg"]
    assert chase_names(source, "test")[::7] == ["Image_11L.jpg", "Image_14R.jpg"]


def test_ade20k_has_150_classes_after_zero_is_reduced(tmp_path):
    fill(tmp_path, "images/*.png", "masks/*.png", values=(0, 1, 150))
    source = SegmentationFolder(tmp_path, classes_file="ade20k", reduce_zero_label=True)
    source.check("train")
    assert len(source.classes) == len(set(source.classes)) == len(set(source.palette)) == 150
    at = {1: "wall", 22: "water", 50: "fireplace", 75: "computer", 100: "buffet", 125: "microwave", 150: "flag"}
    assert {value: source.classes[value - 1] for value in at} == at
    assert source.split("train")[0][1][0, :3].tolist() == [255, 0, 149]


def test_part_of_chasedb1(tmp_path):
    save(tmp_path / "Image_01L.jpg", picture())
    with pytest.raises(ValueError, match="has 1 of CHASEDB1's 28 pictures"):
        SegmentationFolder(tmp_path)
