"""What one task promises of damaged files, all keep: named, counted, skipped up to 1 %, refused above it."""

import warnings
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("segmentation_models_pytorch")
from longvision.data.augment import Augment
from longvision.data.config import DigitsData
from longvision.data.dataset import TransformedSet
from longvision.data.sources.base import ImageSet
from longvision.data.transforms.classification import ClassificationTransforms
from longvision.data.transforms.input_spec import InputSpec
from longvision.engine.callbacks.unreadable import UnreadableImages
from longvision.errors import UnreadableImage, UserError
from longvision.inference import outputs
from longvision.registry import TASKS, load
from longvision_cli.main import main
from support.image_sets import SETS, coded

GOOD = [coded(number) for number in range(150)]
PNG = coded(0, format="png")
DAMAGED = {
    "truncated JPEG (detectron2#143)": GOOD[0][:-300],
    "empty": b"",
    "HTML, of a download that asked for a login": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "of no size": b"P5 0 0 255\n",
    "PNG whose pixels are damaged": PNG[:60] + bytes(len(PNG) - 60),
    "a line of a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "zeros, after a disk was full": bytes(5000),
}


def opened(kind, root, train, val=GOOD[:4], **options):
    """A data module of a new set with these files."""
    words = SETS[kind](root, {"train": train, "val": val})
    config = load(TASKS[words["task"]].sources[words["source"]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return config(path=str(root), size=32, workers=0, **options).build()


@pytest.mark.parametrize(
    "kind, damage",
    [(kind, damage) for kind in SETS for damage in (DAMAGED if kind in ("folder", "masks") else list(DAMAGED)[:3])],
)
def test_one_in_a_hundred_is_named_counted_and_skipped(kind, damage, tmp_path):
    files = [*GOOD]
    files[7] = DAMAGED[damage]
    data = opened(kind, tmp_path / "set", files)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        images = data.images("train")
        loaded = data.train_dataloader().dataset
        row = next((row for row in range(len(images)) if _name(kind) in str(images.items[row])), 7)
        assert images.left_out or loaded[row] is None
    assert any("7" in str(one.message) for one in told)
    (line,) = data.unreadable("train")
    assert line.startswith("1 of 150 images")
    assert len(images) + images.left_out == 150


@pytest.mark.parametrize("damage", ["truncated JPEG (detectron2#143)", "empty"])
@pytest.mark.parametrize("kind", SETS)
def test_more_than_one_in_a_hundred_is_refused(kind, damage, tmp_path):
    files = [*GOOD]
    files[7] = files[9] = DAMAGED[damage]
    data = opened(kind, tmp_path / "set", files)
    with warnings.catch_warnings(), pytest.raises(UserError, match=r"^2 of 150 .*\b1 %") as refused:
        warnings.simplefilter("ignore")
        loaded = data.train_dataloader().dataset
        for row in range(len(loaded)):
            loaded[row]
    assert "7" in str(refused.value) and "9" in str(refused.value)


@pytest.mark.parametrize("kind", SETS)
def test_a_larger_share_may_be_allowed(kind, tmp_path):
    files = [*GOOD]
    files[7] = files[9] = DAMAGED["empty"]
    data = opened(kind, tmp_path / "set", files, unreadable=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = data.train_dataloader().dataset
        read = [loaded[row] for row in range(len(loaded))]
    assert sum(one is not None for one in read) == 148
    assert data.unreadable("train")[0].startswith("2 of 150 images")


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_are_shares(share):
    with pytest.raises(UserError, match=f"unreadable {share}"):
        DigitsData(unreadable=share)


@pytest.mark.parametrize("left", [False, True], ids=["gone", "empty"])
def test_a_set_that_vanished_is_no_unreadable_image(left, tmp_path):
    data = opened("folder", tmp_path / "set", GOOD)
    loaded = data.train_dataloader().dataset
    (tmp_path / "set").rename(tmp_path / "unmounted")
    if left:
        (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="set is gone, or empty"), warnings.catch_warnings(action="error"):
        loaded[0]


def _name(kind):
    return {"voc": "train7.jpg", "parquet": "none", "shards": "in/7'"}.get(kind, "/7.jpg")


def test_images_that_go_away_or_whose_mask_is_damaged_are_skipped(tmp_path):
    data = opened("masks", tmp_path / "set", GOOD)
    (tmp_path / "set/masks/train/7.png").write_bytes(coded(1, format="png")[:100])
    loaded = data.train_dataloader().dataset
    (note,) = data.source.notes
    assert note.startswith("1 of 150 images") and "7.png cannot be read as a mask" in note
    row = next(row for row, (file, _) in enumerate(data.images("train").items) if file.endswith("/7.jpg"))
    with pytest.warns(UserWarning, match=r"7\.png cannot be read as a mask.*1\. of 150"):
        assert loaded[row] is None
    file, _ = data.images("train").items[3]
    Path(file).unlink()
    with pytest.raises(UserError, match=r"2 of 150 images .*does not exist"):  # together they are more than 1 %
        loaded[3]


def test_a_batch_keeps_two_images_in_training_and_may_be_empty_in_evaluation():
    blank = Image.new("RGB", (8, 8))
    broken = ImageSet([0] + [1] * 149, lambda one: (blank, 0) if one else _fail())
    transforms = ClassificationTransforms(Augment(), InputSpec((8, 8)), 2)
    with pytest.warns(UserWarning, match="1. of 150"):
        for training, count in ((True, 2), (False, 0)):
            loaded = TransformedSet(broken, transforms, "here", training)
            assert len(loaded.collate([loaded[0], loaded[0]])[0]) == count
    assert len(TransformedSet(broken, transforms, "here", True).collate([None])[0]) == 1


@pytest.mark.parametrize("other", [3, 7], ids=["the-same", "another"])
def test_the_share_is_the_sets_however_many_devices_read_it(other):
    """Each of two devices meets one bad image of 150, which is allowed; two are not."""
    broken = ImageSet([row in (3, 7) for row in range(150)], lambda bad: _fail() if bad else (None, 0))
    device, other_device = (TransformedSet(broken, SimpleNamespace(train=lambda *_: 1), "here", True) for _ in range(2))
    with pytest.warns(UserWarning, match=r"1\. of 150"):
        device[3], other_device[other]
    data = DigitsData().build()
    data._loaded["train"] = device
    strategy = SimpleNamespace(root_device="cpu", reduce=lambda marks, reduce_op: marks + other_device.unreadable_N)
    trainer = SimpleNamespace(datamodule=data, world_size=2, strategy=strategy)
    data.trainer = trainer
    end = UnreadableImages()
    end.on_validation_epoch_end(trainer, None)  # was not loaded
    if other == 7:
        with pytest.raises(UserError, match=r"^2 of 150 images in here"):
            end.on_train_epoch_end(trainer, None)
    else:
        end.on_train_epoch_end(trainer, None)
        assert "1 of 150" in data.unreadable("train")[0]


@pytest.mark.parametrize("task, batch", [("classification", ([], [])), ("detection", ([], []))])
def test_evaluation_goes_on_after_a_batch_of_nothing(task, batch):
    module = load(TASKS[task].module)
    module.validation_step(SimpleNamespace(_evaluate=partial(module._evaluate, None), val_metrics=None), batch, 0)


@pytest.mark.parametrize("kind", ["folder", "masks"])
def test_check_data_decodes_what_training_will_decode(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = [*GOOD]
    files[7] = DAMAGED["truncated JPEG (detectron2#143)"]
    words = SETS[kind](tmp_path / "one", {"train": files, "val": GOOD[:4]})
    files[9] = files[7]
    SETS[kind](tmp_path / "two", {"train": files, "val": GOOD[:4]})
    (tmp_path / "recipe.yaml").write_text("\n".join(f"{name}: {word}" for name, word in words.items()))
    check = ["check-data", "-c", "recipe.yaml", "--data.size", "32", "--data.path"]
    assert main([*check, "one", "--out", "drawn"]) == 0
    said = capsys.readouterr().out
    assert "1 of 150 images in one (train) cannot be read" in said and "7.jpg" in said and "153 images decoded" in said
    assert main([*check, "two"]) == 2
    refused = capsys.readouterr().err
    assert "2 of 150" in refused and "7.jpg" in refused and "9.jpg" in refused and len(refused.splitlines()) == 1
    assert main([*check, "two", "--sample", "3"]) == 0  # none of the damaged ones are among these
    assert "6 images decoded" in capsys.readouterr().out


def _fail():
    raise UnreadableImage("a.png cannot be read")


# -- prediction -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from support.trained import write_model

    folder = tmp_path_factory.mktemp("weights")
    for task in ("classification", "segmentation", "detection"):
        write_model(task, folder / f"{task}.safetensors")
    return folder


DRAWS = {
    "classification": ("longvision.viz.bars", "draw_classes"),
    "segmentation": ("longvision.viz.overlays", "draw_segmentation"),
    "detection": ("longvision.viz.overlays", "draw_objects"),
}


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param("a drawing", id="a drawing fails"),
        pytest.param("a model", id="the model fails on one image"),
        pytest.param("a disk", id="one file cannot be written"),
        pytest.param("a file", id="one of three is damaged"),
        pytest.param("no image", id="a text file lies in the folder"),
    ],
)
@pytest.mark.parametrize("task", DRAWS)
def test_predict_ends_for_no_single_file(task, failure, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, width in (("a.png", 40), ("b.png", 41), ("c.png", 42)):
        Path("in").mkdir(exist_ok=True)
        Image.new("RGB", (width, 40), "green").save(Path("in", name))
    BREAK[failure](task, monkeypatch)
    code = main(["predict", str(weights / f"{task}.safetensors"), "in", "--out", "out", "--device", "cpu"])
    said = capsys.readouterr()
    rows = [line.split()[0] for line in said.out.splitlines() if line[1:5] == ".png"]
    if failure == "no image":
        assert code == 0 and rows == ["a.png", "b.png", "c.png"] and "readme.txt" in said.err
        return
    assert code == 1 and "b.png" in said.err
    assert rows == (["a.png", "c.png"] if failure in ("a model", "a file") else ["a.png", "b.png", "c.png"])
    written = {path.name for path in Path("out").iterdir()}
    if task == "classification":
        assert written == {"predictions.png"}
    else:
        assert {"a.png", "c.png"} <= written and "b.png" not in written
    if task == "segmentation" and failure == "a drawing":
        assert "b-mask.png" in written  # what is known of it is not lost with its drawing
    if task == "detection":
        assert "objects.json" in written
    assert ("Traceback" in said.err) == (failure == "a model")


def test_predict_tells_of_pages_that_it_does_not_read(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pages = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green")]
    pages[0].save("two.tif", save_all=True, append_images=pages[1:])
    pages[0].save("one.tif")
    model = str(weights / "classification.safetensors")
    assert main(["predict", model, "one.tif", "two.tif", "--json", "--device", "cpu"]) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "pages" in line]
    assert "1 of 2 files" in note and "two.tif" in note and "one.tif" not in note


def _break_drawing(task, monkeypatch):
    module, name = DRAWS[task]
    draw = getattr(import_module(module), name)

    def drawn(image, *rest, **options):
        if image.width == 41:
            raise ValueError("no room for a legend")
        return draw(image, *rest, **options)

    monkeypatch.setattr(f"{module}.{name}", drawn)


def _break_model(task, monkeypatch):
    from longvision.inference.predictor import Predictor

    predict = Predictor._predict

    def failing(self, group):
        if any(image.width == 41 for _, _, image, _ in group):
            raise IndexError("too many values")
        return predict(self, group)

    monkeypatch.setattr(Predictor, "_predict", failing)


def _break_disk(task, monkeypatch):
    if task == "classification":  # it writes one file for all: its drawing stands for it
        _break_drawing(task, monkeypatch)
        return
    write = outputs.write_new

    def written(folder, stem, contents):
        if stem == "b":
            raise OSError(22, "Invalid argument", "b.png")
        return write(folder, stem, contents)

    monkeypatch.setattr(outputs, "write_new", written)


BREAK = {
    "a drawing": _break_drawing,
    "a model": _break_model,
    "a disk": _break_disk,
    "a file": lambda *_: Path("in/b.png").write_bytes(GOOD[0][:-300]),
    "no image": lambda *_: Path("in/readme.txt").write_text("how they were taken"),
}
