"""`longvision prune` and the methods of `longvision explain` beside it: from a run to a smaller one that all commands
take."""

import csv

import pytest
import safetensors.torch
import yaml
from PIL import Image

from longvision.files import read_metadata
from longvision_cli import labelled
from support.efficientvits import SMALL, randomised

ARGS = ["--model.name", "efficientvit_m0", "--model.drop_path", 0, "--data.size", 32, "--data.batch_size", 16]
ARGS += [word for key, value in SMALL.items() for word in (f"--model.args.{key}", str(value).replace(" ", ""))]


@pytest.fixture(scope="module")
def run(longvision, tmp_path_factory):
    """A classifier of digits, of whose configuration the head alone was trained. Its norms are no longer at zero, as
    after a longer training."""
    answer = longvision(
        "train", *ARGS, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2, "--trainer.accelerator", "cpu",
        "--data.workers", 0, "--runs", tmp_path_factory.mktemp("runs"),
    )  # fmt: skip
    assert answer.code == 0, answer.err
    from longvision.inference.predictor import Predictor
    from longvision.models.weights.files import save_weights

    weights = answer.run / "model.safetensors"
    model = randomised(Predictor(answer.run, "cpu").model)
    save_weights(model, weights, read_metadata(weights), overwrite=True)
    (file,) = answer.run.glob("config*.yaml")
    config = yaml.safe_load(file.read_text())
    config["model"] |= {"finetune": "head", "pretrained": str(weights)}
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return answer.run


@pytest.fixture(scope="module")
def pruned(longvision, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "small"
    answer = longvision("prune", run, "--keep", 0.5, "--limit", 40, "--out", folder, "--device", "cpu")
    assert answer.code == 0, answer.err
    return answer, folder


def parameters(folder):
    return sum(weight.numel() for weight in safetensors.torch.load_file(folder / "model.safetensors").values())


def test_the_folder(run, pruned):
    answer, folder = pruned
    metadata = read_metadata(folder / "model.safetensors")
    assert metadata["architecture"] == "efficientvit_m0_pruned" and "metrics" not in metadata
    config = yaml.safe_load((folder / "config.yaml").read_text())["model"]
    assert config["args"] == metadata["args"] and config["args"]["widths"]
    assert config["pretrained"] == str(folder / "model.safetensors") and config["finetune"] == "full"
    assert (folder / "data.json").read_bytes() == (run / "data.json").read_bytes()
    assert (folder / "importance.png").exists()
    with open(folder / "importance.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] != "key"]  # with its query it is one channel
    assert sum(row["kept"] == "yes" for row in rows) == round(len(rows) / 2)
    assert parameters(folder) < parameters(run)
    lines = answer.out.splitlines()
    assert lines[-1] == str(folder)
    before, after = (int(line.split()[1].replace(",", "")) for line in lines if line.startswith(("before", "after")))
    assert 0.5 * before < after < 0.8 * before


@pytest.mark.slow
def test_it_predicts_validates_and_trains(longvision, pruned, tmp_path):
    _, folder = pruned
    Image.radial_gradient("L").save(tmp_path / "image.png")
    answer = longvision("predict", folder, tmp_path / "image.png", "--json", "--device", "cpu")
    assert answer.code == 0 and '"class"' in answer.out, answer
    answer = longvision("validate", folder, "--trainer.accelerator", "cpu")
    assert answer.code == 0 and "accuracy" in answer.out, answer
    words = ["-c", folder / "config.yaml", "--model.pretrained", folder / "model.safetensors", "--runs", "runs"]
    answer = longvision("train", *words)
    assert answer.code == 0, answer.err
    assert (
        read_metadata(answer.run / "model.safetensors")["args"] == read_metadata(folder / "model.safetensors")["args"]
    )
    again = longvision("prune", answer.run, "--keep", 0.8, "--limit", 8, "--device", "cpu")
    assert again.code == 0 and again.out.splitlines()[-1] == "pruned-1", again
    assert parameters(tmp_path / "pruned-1") < parameters(folder)


def test_images_in_folders_of_the_classes(longvision, run, tmp_path):
    for name in ("3", "7"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.radial_gradient("L").save(tmp_path / "images" / name / "a.png")
    for words in (["explain", run, "images", "--method", "importance", "--keep", 0.9], ["prune", run, "images"]):
        answer = longvision(*words, "--device", "cpu", "--out", words[0])
        assert answer.code == 0 and "channels of all layers" in answer.out, answer
        assert (tmp_path / words[0] / "importance.csv").exists()
    (tmp_path / "images" / "3").rename(tmp_path / "images" / "three")
    answer = longvision("explain", run, "images", "--method", "importance", "--device", "cpu")
    assert answer.code == 2 and "'three'" in answer.err


COMMANDS = ["explain", "--method", "importance"], ["prune"]


def test_images_that_cannot_be_read_are_told(longvision, run, tmp_path):
    (tmp_path / "7").mkdir()
    Image.new("L", (32, 32), 99).save(tmp_path / "7/a.png")
    (tmp_path / "7/b.png").write_bytes(b"no image")
    answer = longvision("prune", run, tmp_path / "7", "--out", tmp_path / "out", "--device", "cpu")
    assert answer.code == 0, answer.err
    (line,) = [line for line in answer.out.splitlines() if "cannot be read" in line]
    assert line.startswith("note: 1 of 2 images") and "b.png" in line


def test_few_of_many_are_of_every_class(longvision, run, tmp_path, monkeypatch):
    """And no more than were asked for; both are said."""
    for name in "0123456789":
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (8, 8), number).save(tmp_path / "images" / name / f"{number}.png")
    taken = []
    monkeypatch.setattr(labelled, "_of_folders", lambda images, about: taken.append(images) or no_batches())
    for words in COMMANDS:
        answer = longvision(*words, run, "images", "--limit", 10, "--device", "cpu")
        assert "10 of 30 images are used, spread evenly" in answer.out, answer
    for images in taken:
        assert len(images) == 10 and {path.parent.name for path in images} == set("0123456789")
    assert "note" not in longvision("prune", run, "images", "--limit", 30, "--device", "cpu").out
    assert len(taken[2]) == 30


def no_batches():
    yield from ()


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_images_that_are_none_are_refused(longvision, run, tmp_path, words):
    """Rather than the run's own taken in their place, or the rest of those that were given."""
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "notes.txt").write_text("none")
    Image.radial_gradient("L").save(tmp_path / "image.png")
    for given in (["3"], ["3/notes.txt"], ["image.png", "3"], ["./3/notes.txt", "image.png"]):
        answer = longvision(*words, run, *given, "--device", "cpu")
        named = next(name for name in given if "3" in name)
        assert answer.code == 2 and f"{named} " in answer.err and answer.err.count("\n") == 1, answer
        assert "is no image" in answer.err or "holds no images" in answer.err


def test_of_a_run_s_own_images(longvision, run, tmp_path):
    answer = longvision("explain", run, "--method", "importance", "--limit", 8, "--device", "cpu")
    assert answer.code == 0, answer.err
    assert (tmp_path / "explained-1" / "importance.png").exists()


def test_what_cannot_be_pruned(longvision, run, digits_run, pruned, tmp_path):
    for words, expected in {
        ("prune", run, "--keep", 0): "--keep 0",
        ("prune", run, "--keep", 0.01, "--limit", 4): "need one each",  # less than a channel a head
        ("prune", run, "--limit", 0): "--limit 0",
        ("prune", run, "--out", run): "not overwritten",
        ("prune", digits_run): "vim_nano_patch4_32",
        ("prune", tmp_path / "nothing"): "nothing",
        ("explain", digits_run, "--method", "importance"): "Vim has no queries",
        ("explain", "efficientvit_m0", "--method", "importance"): "folders that are named after the classes",
    }.items():
        answer = longvision(*words)
        assert answer.code == 2 and expected in answer.err and answer.err.count("\n") == 1, answer
    assert list(tmp_path.iterdir()) == []


def test_operators_look_at_no_images(longvision):
    answer = longvision("explain", "vit_nano_patch4_32", "--method", "operators", "--limit", 3)
    assert answer.code == 2 and "--limit" in answer.err and answer.err.count("\n") == 1


def test_operators(longvision, tmp_path):
    answer = longvision("explain", "vit_nano_patch4_32", "--method", "operators", "--size", 16, "--device", "cpu")
    assert answer.code == 0, answer.err
    assert "vit_nano_patch4_32 at 16x16 on cpu" in answer.out and "bound by memory" in answer.out
    with open(tmp_path / "explained-1" / "operators.csv") as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=0.01)
    assert "other" not in {row["kind"] for row in rows}
    assert (tmp_path / "explained-1" / "operators.png").exists()


def test_similarity_of_heads(longvision, tmp_path):
    Image.radial_gradient("L").save(tmp_path / "image.png")
    answer = longvision("explain", "efficientvit_m0", "image.png", "--method", "similarity", "--device", "cpu")
    assert answer.code == 0 and "heads of one layer have" in answer.out, answer
    with open(tmp_path / "explained-1" / "similarity.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and all(0 < float(row["heads"]) <= 1 for row in rows)
    assert rows[0]["with_1"] == "nan" != rows[1]["with_2"]  # of two stages, and of one
