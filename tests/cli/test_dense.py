"""Segmentation and detection from the command line: train, validate, predict, check-data, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("segmentation_models_pytorch")
pytest.importorskip("transformers")
pytest.importorskip("faster_coco_eval")
from longvision.inference import Predictor
from longvision_cli.arguments import ArgumentParser, take_apart
from longvision_cli.configuration import configure

TINY = """
    --trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 2 --trainer.limit_test_batches 2
    --trainer.accelerator cpu --data.workers 0 --data.size 64 --data.pictures 8 --data.batch_size 4
    --model.args.depth 1 --model.args.embed_dim 32
""".split()  # noqa: SIM905 the words as they are typed
NARROW = {
    "segment_digits": ["--model.args.depth", 4],
    "detect_digits": ["--model.width", 16],
    "detr_digits": ["--model.width", 16, "--model.layers", 1],
}


# Detection's run costs most: segmentation and DETR show as much of the commands quickly.
RECIPES = ["segment_digits", "detr_digits", pytest.param("detect_digits", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=RECIPES)
def run(request, longvision, tmp_path_factory):
    """A run of two steps of each recipe. Not to be written to."""
    words = ["-c", request.param, *TINY, *NARROW[request.param], "--runs", tmp_path_factory.mktemp("runs")]
    answer = longvision("train", *words)
    assert answer.code == 0, answer.err
    return request.param, answer


@pytest.fixture
def mixed_files(tmp_path):
    """Two images of different sizes in a folder, a file that is none beside them."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in {"a.png": (80, 50), "b.jpg": (70, 90)}.items():
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0]), dtype=np.uint8)).save(
            folder / name
        )
    (folder / "c.jpg").write_text("no image")
    return folder


def test_what_a_run_leaves(run):
    recipe, answer = run
    names = {path.name for path in answer.run.iterdir()}
    assert {"config.yaml", "metrics.csv", "model.safetensors", "README.md", "curves.png", "classes.png", "classes.csv",
            "predictions.png", "report.html"} <= names  # fmt: skip
    assert "<h2>Classes</h2>" in (answer.run / "report.html").read_text()
    assert answer.out.splitlines()[-2].startswith("test mIoU" if "segment" in recipe else "test box AP")
    card = (answer.run / "README.md").read_text()
    assert "Predictor" in card and "pipeline_tag: " in card


def test_validate(run, longvision):
    _, trained = run
    answer = longvision("validate", trained.run, "--split", "test", "--trainer.limit_test_batches", 2)
    assert answer.code == 0, answer.err
    said = trained.out.splitlines()[-2].split()
    value = next(word for word in said if word[0].isdigit())
    assert f" {value} %" in answer.out  # the same weights give the same metric


def test_predict_fills_a_folder(run, longvision, mixed_files):
    recipe, trained = run
    answer = longvision("predict", trained.run, mixed_files)
    assert answer.code == 1
    assert "c.jpg is not an image" in answer.err and "1 of 3 files" in answer.err
    folder = Path("predictions-1")
    files = {path.name for path in folder.iterdir()}
    if recipe == "segment_digits":
        assert files == {"a.png", "a-mask.png", "b.png", "b-mask.png"}
        with Image.open(folder / "a-mask.png") as mask:
            assert mask.mode == "P" and mask.size == (80, 50) and np.asarray(mask).max() <= 10
    else:
        assert files == {"a.png", "b.png", "objects.json"}
        found = json.loads((folder / "objects.json").read_text())
        sizes = {Path(image["file_name"]).name: (image["width"], image["height"]) for image in found["images"]}
        assert sizes == {"a.png": (80, 50), "b.jpg": (70, 90)}
        assert [category["name"] for category in found["categories"]] == list("0123456789")
    assert str(folder) in answer.out.splitlines()[-1]
    again = longvision("predict", trained.run, mixed_files / "a.png", "--out", folder)
    assert again.code == 2 and "exists already" in again.err
    assert {path.name for path in folder.iterdir()} == files


def test_predict_as_json_writes_nothing(run, longvision, mixed_files):
    recipe, trained = run
    answer = longvision("predict", trained.run, mixed_files / "a.png", "--json")
    found = json.loads(answer.out)
    assert not Path("predictions-1").exists()
    if recipe == "segment_digits":
        assert sum(row["pixels"] for row in found[0]["classes"]) == pytest.approx(1)
    else:
        assert set(found) == {"images", "categories", "annotations"}


def test_python_and_the_command_line_say_the_same(run, longvision, mixed_files):
    recipe, trained = run
    found = json.loads(longvision("predict", trained.run, mixed_files / "a.png", "--json").out)
    result = Predictor(trained.run)(mixed_files / "a.png").to_dict()
    assert json.loads(json.dumps(result)) == (found[0] if recipe == "segment_digits" else found)


def test_what_validate_computes(run, longvision, monkeypatch):
    """What validation measures of an image is what the predictor says of it."""
    from longvision.tasks.objects import ObjectTask
    from longvision.tasks.segmentation import Segmentation

    recipe, trained = run
    seen = []
    kind, name = (Segmentation, "probabilities") if recipe == "segment_digits" else (ObjectTask, "detect")
    method = getattr(kind, name)

    def recorded(self, *arguments):
        output = method(self, *arguments)
        seen.extend([output.argmax(0).numpy()] if recipe == "segment_digits" else [found.numpy() for found in output])
        return output

    monkeypatch.setattr(kind, name, recorded)
    answer = longvision("validate", trained.run, "--trainer.limit_val_batches", 2)
    assert answer.code == 0, answer.err
    images = configure([trained.run / "config.yaml"], take_apart(ArgumentParser(), [])).data.build().images("val")
    predictor = Predictor(trained.run, "cpu")
    assert len(seen) == 2
    for row, expected in enumerate(seen):
        result = predictor(images[row][0])
        if recipe == "segment_digits":
            assert np.array_equal(result.mask_HW, expected)
        else:
            for field in ("boxes", "scores", "labels"):
                np.testing.assert_allclose(getattr(result.detections, field), getattr(expected, field), rtol=1e-4)


def test_what_predict_refuses(run, longvision, mixed_files):
    recipe, trained = run
    window = longvision("predict", trained.run, mixed_files / "a.png", "--window", 64)
    if recipe == "segment_digits":
        assert window.code == 0
        refused = [("--threshold", 0.3), ("--window", 0)]
    else:
        refused = [("--window", 64), ("--threshold", 2), ("--threshold", "nan"), ("--threshold", -0.1)]
        surest = longvision("predict", trained.run, mixed_files, "--threshold", 1, "--out", "sure")
        assert "nothing above 1.00" in surest.out
    for option, value in refused:
        answer = longvision("predict", trained.run, mixed_files, option, value, "--out", "new")
        assert answer.code == 2 and option in answer.err and not Path("new").exists()


def test_what_is_found_is_counted_by_class(run, longvision, mixed_files):
    recipe, trained = run
    if recipe == "segment_digits":
        said = longvision("predict", trained.run, mixed_files / "a.png").out
        assert sum(map(float, re.findall(r"(\d+\.\d) %", said.splitlines()[0]))) > 50  # the first five classes' pixels
        return
    answer = longvision("predict", trained.run, mixed_files, "--threshold", 0)
    (folder,) = Path().glob("predictions-*")
    found = json.loads((folder / "objects.json").read_text())["annotations"]
    said = re.findall(r"\d × (\d+)", answer.out)
    assert said and sum(map(int, said)) == len(found), answer.out


def test_no_image_s_file_is_written_over(run, longvision, tmp_path):
    recipe, trained = run
    for name in ("a-2.png", "a.png", "x.png", "x-mask.png", "deep/a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 40)).save(tmp_path / "in" / name)
    answer = longvision("predict", trained.run, "in", tmp_path / "in" / "a.png", "--out", "out")
    assert answer.code == 0, answer.err
    assert len(list(Path("out").glob("*.png"))) == (12 if recipe == "segment_digits" else 6)
    renamed = [line for line in answer.out.splitlines() if " is written as " in line]
    begins = f"{Path('in', 'deep', 'a.png')} is written as a-"
    assert len(renamed) >= 2 and any(line.startswith(begins) for line in renamed)


def test_an_image_too_large_for_memory_is_named(run, longvision, mixed_files, monkeypatch):
    _, trained = run

    def fail(self, group):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(Predictor, "_predict", fail)
    answer = longvision("predict", trained.run, mixed_files / "a.png")
    assert answer.code == 1
    assert "a.png (80x50 pixels)" in answer.err and "tiles" in answer.err
    assert not Path("predictions-1").exists()


def test_weights_of_another_task_are_refused(run, longvision):
    recipe, trained = run
    weights = trained.run / "model.safetensors"
    answer = longvision("train", "--model.pretrained", weights)
    assert answer.code == 2
    task = {"segment_digits": "segmentation", "detect_digits": "detection", "detr_digits": "detr"}[recipe]
    assert str(weights) in answer.err and f" {task}" in answer.err
    for words in (["--data.size", 96], ["--data.size=96"], ["--task", "classification"]):
        answer = longvision("validate", trained.run, *words)
        assert answer.code == 2 and words[0].split("=")[0] in answer.err


@pytest.mark.parametrize(
    "task, words, named",
    [
        ("detr", "--model.name resnet10t --data.size 64", ["resnet10t", "--model.pretrained"]),
        ("segmentation", "--model.head upernet --data.batch_size 1", ["--data.batch_size 1", "fpn"]),
    ],
)
def test_what_no_training_can_start_from_is_refused_before_it_is_announced(longvision, tmp_path, task, words, named):
    recipe = tmp_path / "scattered.yaml"
    recipe.write_text(f"task: {task}\nsource: scattered\n")
    answer = longvision("train", "-c", recipe, *words.split(), "--data.pictures", 8, "--data.workers", 0)
    assert (answer.code, answer.out) == (2, ""), answer
    assert all(text in answer.err for text in named) and answer.err.count("\n") == 1, answer.err
    assert not Path("runs").exists()


@pytest.mark.parametrize("recipe", ["digits", "most_digits", *RECIPES])
def test_check_data(longvision, recipe):
    words = [] if recipe == "digits" else ["--data.pictures", 8, "--sample", 8]
    answer = longvision("check-data", "-c", recipe, "--data.size", 64, "--data.workers", 0, *words)
    assert answer.code == 0, answer.err
    assert "no mistake found" in answer.out
    with Image.open("data-1/samples.png") as sheet:
        assert min(sheet.size) > 200


def test_check_data_names_a_mistake(longvision, tmp_path):
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "set" / kind / split).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (20, 10)).save(tmp_path / "set" / "images" / split / f"{number}.png")
            values = np.zeros((10, 20), np.uint8)
            values[:, 10:] = 1
            Image.fromarray(values).save(tmp_path / "set" / "masks" / split / f"{number}.png")
    Image.new("L", (20, 11)).save(tmp_path / "set" / "masks" / "val" / "1.png")
    words = ["--task", "segmentation", "--source", "masks", "--data.path", tmp_path / "set"]
    (tmp_path / "empty.yaml").write_text("task: segmentation\nsource: masks\n")
    answer = longvision("check-data", "-c", tmp_path / "empty.yaml", *words)
    assert answer.code == 2 and len(answer.err.strip().splitlines()) == 1
    assert "1.png" in answer.err and "11" in answer.err
    assert not Path("data-1").exists()


def test_check_data_says_what_it_takes(longvision):
    assert "usage: longvision check-data" in longvision("check-data", "--help").out
