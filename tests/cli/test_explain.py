"""`longvision explain`: a model, images and a method -> a sentence, drawings and numbers."""

import csv

import pytest
from PIL import Image

NAME = "vit_nano_patch4_32"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.radial_gradient("L").save(path)
    return path


def rows(folder):
    with open(folder / "similarity.csv") as file:
        return list(csv.DictReader(file))


def test_an_untrained_model_by_name(longvision, image, tmp_path):
    answer = longvision("explain", NAME, image, "--method", "similarity", "--device", "cpu")
    assert answer.code == 0, answer.err
    note, sentence, folder = answer.out.splitlines()
    assert NAME in note and "untrained" in note
    assert sentence.startswith("over 1 image,")
    assert folder == "explained-1"
    assert [row["module"] for row in rows(tmp_path / folder)] == [f"blocks.{i}.attn" for i in range(4)]
    with Image.open(tmp_path / folder / "similarity.png") as drawn:
        assert drawn.format == "PNG"
    again = longvision("explain", NAME, image, "--method", "similarity", "--device", "cpu")
    assert again.out.splitlines()[-1] == "explained-2"
    assert rows(tmp_path / "explained-2") == rows(tmp_path / folder)  # random weights are the same ones


def test_a_vim_by_its_scans(longvision, image, tmp_path):
    answer = longvision("explain", "vim_nano_patch4_32", image, "--method", "similarity", "--heads", 4, "--out", "out")
    assert answer.code == 0, answer.err
    found = rows(tmp_path / "out")
    assert [row["module"] for row in found] == [f"layers.{i}.mixer" for i in range(4)]
    assert all(0 < float(row["heads"]) < 1 for row in found)


def test_a_run_and_its_weights(longvision, train, image, tmp_path):
    made = train(
        "--model.name", NAME, "--model.args.depth", 2, "--model.args.embed_dim", 32, "--runs", tmp_path / "runs"
    )
    assert made.code == 0, made.err
    found = []
    for number, what in enumerate([made.run, made.run / "model.safetensors"]):
        answer = longvision("explain", what, image, "--method", "similarity", "--out", f"out{number}")
        assert answer.code == 0 and "untrained" not in answer.out, answer
        found.append(rows(tmp_path / f"out{number}"))
    assert len(found[0]) == 2 and found[0] == found[1]


@pytest.mark.slow
def test_importance_of_a_run_that_packs(longvision, train, image, tmp_path):
    made = train(
        "-c", "mixed_digits", "--model.name", NAME, "--model.args.depth", 1, "--model.args.embed_dim", 32,
        "--trainer.max_epochs", 1, "--runs", tmp_path / "runs",
    )  # fmt: skip
    assert made.code == 0, made.err
    with Image.open(image) as square:
        for number, size in enumerate([(40, 12), (12, 40)]):
            (tmp_path / "images" / str(number)).mkdir(parents=True)
            square.resize(size).save(tmp_path / "images" / str(number) / "image.png")
    for where in ([], [tmp_path / "images"]):
        answer = longvision("explain", made.run, *where, "--method", "importance", "--limit", 8, "--device", "cpu")
        assert answer.code == 0 and "70%" in answer.out, answer


def test_only_the_first_images_are_used(longvision, image, tmp_path):
    for name in ("b.png", "notes.txt"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(image.read_bytes() if name.endswith("png") else b"x")
    words = ["explain", NAME, image, tmp_path / "folder", "--method", "similarity"]
    assert "over 2 images" in longvision(*words).out
    answer = longvision(*words, "--limit", 1)
    assert "over 1 image," in answer.out and "first 1 of 2" in answer.out


@pytest.mark.parametrize(
    "words, expected",
    [
        (["resnet18"], "resnet18"),
        ([NAME, "--threshold", "1.5"], "--threshold 1.5"),
        ([NAME, "--threshold", "x"], "'x'"),
        ([NAME, "--heads", "2"], "--heads 2"),
        (["vim_nano_patch4_32", "--heads", "7"], "--heads 7"),
        ([NAME, "--limit", "0"], "0"),
        ([NAME, "--weights", "image.png"], "image.png"),
    ],
)
def test_mistakes(longvision, image, words, expected, tmp_path):
    answer = longvision("explain", *words, image, "--method", "similarity", "--device", "cpu")
    assert answer.code == 2 and answer.err.count("\n") == 1 and expected in answer.err, answer.err
    assert not list(tmp_path.glob("explained-*"))
