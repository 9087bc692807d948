import gc
import io
import os
import warnings
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

lightning = pytest.importorskip("lightning")
pytest.importorskip("sklearn")
from longvision.data import Augment, DigitsData, FolderData, ParquetData  # noqa: E402
from longvision.errors import UserError  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    for name, count in {"cat": 20, "dog": 20}.items():
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (40, 30), (10 * number, 0, 0)).save(tmp_path / name / f"{number}.png")
    return tmp_path


class Counter(lightning.LightningModule):
    """A model of one weight, that keeps the batches it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch, _):
        self.seen["train"].append(batch)
        return self.weight * batch[0].mean()

    def validation_step(self, batch, _):
        self.seen["val"].append(batch)

    def test_step(self, batch, _):
        self.seen["test"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet, **options)


def test_what_is_known_after_construction(folder):
    digits = DigitsData(size=16).build()
    assert (digits.size, digits.channels, len(digits.classes), digits.has_test) == ((16, 16), 1, 10, True)
    assert digits.classes == [str(digit) for digit in range(10)]
    assert (digits.batch_size, digits.workers) == (64, 0)
    data = FolderData(str(folder), size=(24, 32), mean=(0.5, 0.5, 0.5)).build()
    assert (data.size, data.channels, len(data.classes), data.has_test) == ((24, 32), 3, 2, False)
    assert data.input.mean == (0.5, 0.5, 0.5)
    assert data.input.size == (24, 32)
    assert data.workers >= 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="known on Linux only")
@pytest.mark.parametrize(("cores", "workers"), [({5}, 1), ({0, 3, 7}, 3), (set(range(64)), 4)], ids=str)
def test_a_worker_for_each_core_that_the_process_may_use(folder, monkeypatch, cores, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores)
    assert FolderData(str(folder), size=24).build().workers == workers


def test_batches(folder):
    data = FolderData(str(folder), size=(24, 32), batch_size=8, workers=0).build()
    data.setup("fit")
    train, val = list(data.train_dataloader()), list(data.val_dataloader())
    assert [len(labels_B) for _, labels_B in train] == [8] * 4  # 36 images: the last 4 are dropped
    assert [len(labels_B) for _, labels_B in val] == [4]
    images_BCHW, labels_B = train[0]
    assert (images_BCHW.shape, images_BCHW.dtype) == ((8, 3, 24, 32), torch.float32)
    assert labels_B.dtype == torch.int64
    assert len(list(FolderData(str(folder), size=8, batch_size=64, workers=0).build().train_dataloader())) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_file_is_left_out_of_its_batch(tmp_path, workers):
    for place, count in {"train/cat": 100, "train/dog": 100, "val/cat": 1, "val/dog": 1}.items():
        (tmp_path / place).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / place / f"{number}.png")
    broken = tmp_path / "train" / "cat" / "3.png"
    broken.write_bytes(broken.read_bytes()[:45])
    data = FolderData(str(tmp_path), size=8, batch_size=50, workers=workers).build()
    data.setup("fit")
    with warnings.catch_warnings(action="ignore"):
        assert sorted(len(labels_B) for _, labels_B in data.train_dataloader()) == [49, 50, 50, 50]


def test_same_seed_same_batches():
    def first(seed):
        lightning.seed_everything(seed, verbose=False)
        return next(
            iter(DigitsData(size=8, augment=Augment(rand_augment="rand-m9-mstd0.5")).build().train_dataloader())
        )

    (images_1, labels_1), (images_2, labels_2), (images_3, _) = first(1), first(1), first(2)
    assert torch.equal(images_1, images_2)
    assert torch.equal(labels_1, labels_2)
    assert not torch.equal(images_1, images_3)


def test_lightning_takes_it():
    data, model = DigitsData(size=8, batch_size=400, augment=Augment(mixup=0.8, cutmix=1.0)).build(), Counter()
    running = trainer(num_sanity_val_steps=1)
    running.fit(model, data)
    running.test(model, data, verbose=False)
    assert [targets.shape for _, targets in model.seen["train"]] == [(400, 10)] * 3
    assert {targets.shape for _, targets in model.seen["val"]} == {(144,)}
    assert {targets.shape for _, targets in model.seen["test"]} == {(360,)}
    torch.testing.assert_close(model.seen["train"][0][1].sum(1), torch.ones(400))


def test_mixup_only_while_training():
    data = DigitsData(size=8, batch_size=5, augment=Augment(mixup=1.0)).build()
    batch = next(iter(data.val_dataloader()))
    data.trainer = SimpleNamespace(training=False)
    assert data.on_after_batch_transfer(batch, 0) is batch
    data.trainer = SimpleNamespace(training=True)
    assert data.on_after_batch_transfer(batch, 0)[1].shape == (5, 10)


def test_sample():
    data = DigitsData(size=16).build()
    image, seen_CHW, label = data.sample("test", 0)
    assert image.size == (8, 8)
    assert torch.equal(seen_CHW, data.input.evaluated(image))
    assert label == data.images("test")[0][1]


def test_workers_collect_no_garbage_of_the_process_that_they_share():
    try:
        DigitsData().build().train_dataloader().worker_init_fn(0)
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()


def test_parquet(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    pq.write_table(pa.table({"pic": [buffer.getvalue()] * 40, "label": [0, 1] * 20}), tmp_path / "train.parquet")
    data = ParquetData(str(tmp_path), size=8, batch_size=9, workers=1, image_column="pic").build()
    assert data.classes == ["0", "1"]
    assert [len(labels_B) for _, labels_B in data.train_dataloader()] == [9] * 4


def test_no_test_images(folder):
    with pytest.raises(UserError, match="has no test images"):
        FolderData(str(folder)).build().setup("test")
    FolderData(str(folder)).build().setup()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"workers": -1}, "workers -1"),
        ({"size": 0}, "size"),
        ({"mean": (0.1, 0.2)}, "mean has 2 values"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        DigitsData(**options)
