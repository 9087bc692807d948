import json

import pytest
import torch
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

from longvision.data import CocoData, DataModule, DetectionAugment, ScatteredDetectionData, VocData
from longvision.data.sources.scattered import ScatteredDigits
from longvision.errors import UnreadableImage, UserError


@pytest.fixture(scope="module")
def digits():
    data = ScatteredDetectionData(size=64, pictures=20, batch_size=4, workers=0).build()
    data.setup()
    return data


def boxes_only(tmp_path):
    """A COCO set of boxes alone: ten images of 30x50, the last without objects."""
    (tmp_path / "annotations").mkdir(exist_ok=True)
    labels = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 30, "width": 50} for n in range(10)],
        "annotations": [
            {"id": n, "image_id": n % 9, "category_id": 1 + n % 2, "bbox": [5, 5, 20, 20], "iscrowd": int(n > 8)}
            for n in range(18)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    for split in ("train", "val"):
        (tmp_path / split).mkdir(exist_ok=True)
        for n in range(10):
            Image.new("RGB", (50, 30)).save(tmp_path / split / f"{n}.png")
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(labels))
    return str(tmp_path)


def test_scattered_digits_in_batches(digits):
    assert (digits.info.has_masks, digits.has_test, digits.classes) == (True, True, list("0123456789"))
    assert [len(digits.images(split)) for split in ("train", "val", "test")] == [20, 200, 400]
    batches = list(digits.train_dataloader())
    assert len(batches) == 5
    for images, targets in batches:
        assert [image.shape for image in images] == [(1, 64, 64)] * 4
        for target in targets:
            count = len(target.labels)
            assert target.boxes.shape == (count, 4) and target.masks.shape == (count, 64, 64)
            assert type(target.boxes) is torch.Tensor and target.masks.dtype == torch.bool


def test_scattered_digits_as_they_are_evaluated(digits):
    (image,), (target,) = next(iter(digits.test_dataloader()))
    scene = ScatteredDigits("test", 400, (64, 64)).scene(0)
    assert target.boxes.tolist() == scene.boxes_N4.tolist()
    assert target.labels.tolist() == scene.labels_N.tolist()
    assert torch.equal(target.masks, torch.from_numpy(scene.masks_NHW))
    assert (image.shape, target.size, target.image_id) == ((1, 64, 64), (64, 64), 0)


def test_evaluated_images_are_fitted_and_targets_are_not(tmp_path):
    data = CocoData(boxes_only(tmp_path), size=(60, 80), workers=0).build()
    data.setup("fit")
    batches = list(data.val_dataloader())
    assert len(batches) == 10
    (image,), (target,) = batches[0]
    assert (image.shape, image.dtype) == ((3, 48, 80), torch.float32)  # 30x50 as large as fits into 60x80
    assert target.size == (30, 50)
    assert target.boxes.tolist() == [[5, 5, 25, 25]] * 2
    assert target.iscrowd.tolist() == [False, True]  # COCO's metrics need crowds
    assert len(batches[9][1][0].labels) == 0
    assert target.masks is None


def test_training_drops_crowds(tmp_path):
    data = CocoData(boxes_only(tmp_path), size=64, workers=0, batch_size=10, augment=DetectionAugment((1, 1))).build()
    data.setup("fit")
    images, targets = next(iter(data.train_dataloader()))
    assert [image.shape for image in images] == [(3, 64, 64)] * 10
    assert sum(len(target.labels) for target in targets) == 9


def test_copy_paste_needs_masks(tmp_path):
    with pytest.raises(UserError, match=r"^copy_paste 0\.5: .* has no masks to cut objects out by, set it to 0$"):
        CocoData(boxes_only(tmp_path), augment=DetectionAugment(copy_paste=0.5)).source()


def test_copy_paste_takes_objects_of_training_images(digits, monkeypatch):
    asked = []
    pictures = digits.images("train")
    original = type(pictures).__getitem__
    monkeypatch.setattr(type(pictures), "__getitem__", lambda self, index: asked.append(index) or original(self, index))
    data = ScatteredDetectionData(
        size=64, pictures=20, workers=0, augment=DetectionAugment((1, 1), 0, copy_paste=1.0)
    ).build()
    image, target = pictures[0]
    counts = [len(data.transforms.train(image, target, data.images("train"))[1].labels) for _ in range(20)]
    assert len(set(asked)) > 8
    assert max(counts) > len(target.labels)


def test_an_unreadable_image_is_skipped_and_counted_once(tmp_path):
    """Not once more for each image onto which its objects would have been pasted."""
    data = ScatteredDetectionData(size=64, pictures=150, workers=0, augment=DetectionAugment(copy_paste=1.0)).build()
    images = data.images("train")
    read = type(images).__getitem__

    class Damaged(type(images)):
        def __getitem__(self, index):
            if index == 3:
                raise UnreadableImage("3.png cannot be read as an image: truncated")
            return read(self, index)

    images.__class__ = Damaged
    dataset = data.train_dataloader().dataset
    with pytest.warns(UserWarning, match=r"3\.png") as told:
        assert [index for index in range(150) if dataset[index] is None] == [3]
    assert len(told) == 1


def test_labels_are_checked_before_the_first_step(tmp_path):
    path = boxes_only(tmp_path)
    (tmp_path / "val/3.png").unlink()
    data = CocoData(path, workers=0).build()
    with pytest.raises(UserError, match=r"instances_val\.json lists do not exist \(.*3\.png\)"):
        data.setup("fit")


def test_grey_input_from_colour_files(tmp_path):
    data = CocoData(
        boxes_only(tmp_path), size=64, channels=1, workers=0, augment=DetectionAugment(photometric=1.0)
    ).build()
    image, target = data.images("train")[0]
    assert data.transforms.train(image, target, data.images("train"))[0].shape == (1, 64, 64)
    assert data.transforms.evaluate(image, target)[0].shape == (1, 38, 64)


def test_worker_processes_vary_images_differently(tmp_path):
    """And the sets travel to them."""
    data = ScatteredDetectionData(
        size=64, pictures=8, batch_size=2, workers=2, augment=DetectionAugment((0.2, 0.9))
    ).build()
    data.setup("fit")
    targets = [target for _, targets in data.train_dataloader() for target in targets]
    assert sorted(target.image_id for target in targets) == list(range(8))


@pytest.mark.shared
@pytest.mark.parametrize("paste", [0.0, 1.0])
def test_coco_itself(shared, paste):
    data = CocoData(str(shared / "data/coco"), size=256, workers=0, augment=DetectionAugment(copy_paste=paste)).build()
    check_training(data, 6)
    (image,), (target,) = next(iter(data.val_dataloader()))
    assert max(image.shape) == 256
    assert target.masks.shape[1:] == target.size


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore:.*have no area.*BloodImage")
def test_bccd(shared):
    check_training(VocData(str(shared / "data/bccd"), size=256, workers=0).build(), 12)


def check_training(data: DataModule, count: int) -> None:
    data.setup("fit")
    pictures = data.images("train")
    objects = 0
    for index in range(count):
        image, target = data.transforms.train(*pictures[index], pictures)
        objects += len(target.labels)
        assert image.shape == (3, 256, 256) and image.isfinite().all()
        assert (target.masks is not None) == data.info.has_masks
        assert ((target.boxes >= 0) & (target.boxes <= 256)).all()
        assert (target.boxes[:, 2:] - target.boxes[:, :2] >= 1).all()
        assert ((target.labels >= 0) & (target.labels < len(data.classes))).all()
        assert not target.iscrowd.any()
    assert objects > count
