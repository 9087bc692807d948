"""`longvision predict`: a table, JSON, and files; what is refused; and what happens to files that are no images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from longvision.inference import Predictor


@pytest.fixture
def three(tmp_path):
    """Three scans of digits, two of them in a folder."""
    from longvision.data.sources.digits import DigitsSource

    digits = DigitsSource().split("test")
    (tmp_path / "scans" / "deep").mkdir(parents=True)
    paths = [tmp_path / "scans" / "a.png", tmp_path / "scans" / "deep" / "b.png", tmp_path / "c.png"]
    for row, path in enumerate(paths):
        digits[row][0].save(path)
    return paths


def test_json(longvision, digits_run, three):
    answer = longvision("predict", digits_run, *three, "--json")
    assert (answer.code, answer.err) == (0, "")
    rows = json.loads(answer.out)
    assert [row["file"] for row in rows] == [str(path) for path in three]
    for row in rows:
        shares = [best["probability"] for best in row["top"]]
        assert len(shares) == 5
        assert shares == sorted(shares, reverse=True)
        assert min(shares) > 0 and 0.5 < sum(shares) <= 1 + 1e-6  # five of ten, the most likely ones
        assert len({best["class"] for best in row["top"]} & set("0123456789")) == 5
    assert not list(Path().glob("predictions-*"))


def test_probabilities_of_all_classes_sum_to_one(longvision, folder_run, images):
    (row,) = json.loads(longvision("predict", folder_run, images / "test" / "dark" / "0.jpg", "--json").out)
    assert sum(best["probability"] for best in row["top"]) == pytest.approx(1)
    assert {best["class"] for best in row["top"]} == {"dark", "light"}


def test_python_and_the_command_line_say_the_same(longvision, folder_run, images):
    paths = sorted((images / "test").rglob("*.*"))
    rows = json.loads(longvision("predict", folder_run, *paths, "--json").out)
    predictor = Predictor(folder_run)
    assert rows == [result.to_dict() for result in predictor(paths)]
    with Image.open(paths[0]) as image:
        assert predictor(image).top() == predictor(paths[0]).top()


def test_what_validate_computes(longvision, folder_run, images):
    """The same share of the same images is right."""
    paths = [path for path in sorted((images / "test").rglob("*.*"))]
    right = [result.top(1)[0][0] == path.parent.name for result, path in zip(Predictor(folder_run)(paths), paths)]
    said = longvision("validate", folder_run, "--split", "test").out
    accuracy = next(line for line in said.splitlines() if line.startswith("accuracy"))
    assert accuracy.split()[1] == f"{100 * sum(right) / len(right):.1f}"


def test_the_table(longvision, digits_run, three):
    answer = longvision("predict", digits_run, *three)
    folder, *table, files = answer.out.splitlines()
    assert folder.startswith("in ") and Path(folder.removeprefix("in ")).is_dir()
    assert len(table) == 3
    rows = json.loads(longvision("predict", digits_run, *three, "--json").out)
    for line, row in zip(table, rows):
        assert line.startswith(os.path.relpath(row["file"], folder.removeprefix("in ")) + " ")
        first = row["top"][0]
        assert f"  {first['class']} {100 * first['probability']:.1f} %" in line
    assert files.endswith(": predictions-1")


def test_the_table_of_one_image_names_it_as_it_was_given(longvision, digits_run, three):
    line = longvision("predict", digits_run, three[0]).out.splitlines()[0]
    assert line.startswith(f"{three[0]}  ")


def test_folders_are_searched(longvision, digits_run, three):
    rows = json.loads(longvision("predict", digits_run, "scans", "--json").out)
    assert [row["file"] for row in rows] == ["scans/a.png", "scans/deep/b.png"]


def test_nothing_is_ever_overwritten(longvision, digits_run, three):
    for number in (1, 2):
        assert f": predictions-{number}\n" in longvision("predict", digits_run, three[0]).out
    first = Path("predictions-1", "predictions.png").read_bytes()
    longvision("predict", digits_run, *three)
    assert Path("predictions-1", "predictions.png").read_bytes() == first
    with (
        Image.open("predictions-3/predictions.png") as three_images,
        Image.open("predictions-1/predictions.png") as one,
    ):
        assert three_images.format == "PNG"
        assert three_images.width * three_images.height > 2 * one.width * one.height
    refused = longvision("predict", digits_run, three[0], "--out", "predictions-1")
    assert refused.code == 2 and "predictions-1" in refused.err


def test_a_folder_of_one_s_own(longvision, digits_run, three):
    assert ": deep/mine\n" in longvision("predict", digits_run, three[0], "--out", "deep/mine").out
    assert [path.name for path in Path("deep/mine").iterdir()] == ["predictions.png"]
    assert not Path("predictions-1").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder in which nobody may write")
def test_a_folder_that_cannot_be_made(longvision, digits_run, three):
    answer = longvision("predict", digits_run, three[0], "--out", "/proc/self/mine")
    assert answer.code == 2 and "/proc/self/mine" in answer.err and answer.err.count("\n") == 1


def test_no_more_than_sixteen_are_drawn(longvision, digits_run, three):
    answer = longvision("predict", digits_run, *three * 6)
    assert len(answer.out.splitlines()) == 20
    with Image.open("predictions-1/predictions.png") as sheet:
        assert max(sheet.size) <= 4100


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_changes_nothing(longvision, digits_run, three, batch):
    expected = json.loads(longvision("predict", digits_run, *three, "--json").out)
    found = json.loads(longvision("predict", digits_run, *three, "--json", "--batch", batch, "--device", "cpu").out)
    for one, other in zip(found, expected, strict=True):
        shares = [{best["class"]: best["probability"] for best in row["top"]} for row in (one, other)]
        assert shares[0] == pytest.approx(shares[1], rel=1e-4)


@pytest.mark.parametrize(
    "words, said",
    [
        ("nowhere image.png", ["nowhere"]),
        ("empty image.png", ["empty"]),
        ("image.png image.png", ["image.png"]),
        ("{run} missing.png", ["missing.png"]),
        ("{run} empty", ["empty"]),
        ("{run} image.png --window 64", ["--window", "classification"]),
        ("{run} image.png --threshold 0.5", ["--threshold", "classification"]),
        ("{run} image.png --device gpu", ["'gpu'", "cuda:N"]),
        ("{run} image.png --batch 0", ["--batch 0"]),
        ("{run} image.png --batch two", ["--batch", "two"]),
        ("{run} image.png --tokens 0", ["--tokens 0"]),
        ("{run} image.png --tokens few", ["--tokens", "few"]),
        ("{run} image.png --budget-ms -1", ["--budget-ms -1"]),
        ("{run} image.png --budget-ms 5 --tokens 9", ["--budget-ms", "--tokens"]),
        ("{run} image.png --picture new.png", ["--picture", "--out"]),
        ("{run} image.png --picture=new.png", ["--picture", "--out"]),
        ("{run} image.png --out image.png", ["image.png", "--out"]),
        ("{run} image.png --out image.png/deep", ["image.png", "--out"]),
        ("{run} image.png --out full", ["full", "--out"]),
        ("{run} image.png --pixels 3", ["--pixels"]),
        ("{run}", ["FILE|FOLDER"]),
    ],
)
def test_a_mistake_is_told_before_torch_is_loaded(digits_run, words, said):
    Image.new("L", (8, 8)).save("image.png")
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full", "mine.txt").touch()
    before = sorted(Path().rglob("*"))
    code = (
        "import sys; from longvision_cli.main import main\n"
        "code = main(['predict', *sys.argv[1:]])\n"
        "print(sorted({'torch', 'timm', 'torchvision', 'lightning'} & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words.format(run=digits_run).split()], capture_output=True, text=True, timeout=120
    )
    sentence, loaded = done.stderr.splitlines()
    assert (done.returncode, done.stdout, loaded) == (2, "", "[]"), done.stderr
    assert all(word in sentence for word in said)
    assert sorted(Path().rglob("*")) == before


def test_bad_files_are_named_counted_and_skipped(longvision, digits_run, three):
    Path("bad.png").write_text("no image")
    Path("cut.png").write_bytes(three[0].read_bytes()[:60])
    Path("empty.png").touch()
    answer = longvision("predict", digits_run, "bad.png", three[0], "cut.png", "empty.png", "--json")
    assert answer.code == 1
    assert len(json.loads(answer.out)) == 1
    lines = answer.err.splitlines()
    assert [name in line for name, line in zip(("bad.png", "cut.png", "empty.png"), lines)] == [True] * 3
    assert lines[-1] == "longvision predict: no result for 3 of 4 files"
    assert len(lines) == 4


def test_no_more_than_ten_bad_files_are_named(longvision, digits_run, three):
    for number in range(12):
        Path(f"bad{number}.png").write_text("no image")
    lines = longvision("predict", digits_run, *Path().glob("bad*.png"), three[0], "--json").err.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "longvision predict: no result for 12 of 13 files"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_none_was_good(longvision, digits_run, options):
    Path("bad.png").write_text("no image")
    answer = longvision("predict", digits_run, "bad.png", *options)
    assert answer.code == 1
    assert "bad.png" in answer.err
    assert (json.loads(answer.out) if options else answer.out) == ([] if options else "")
    assert not list(Path().glob("predictions-*"))


def test_the_run_is_enough(longvision, folder_run, images, tmp_path):
    """Prediction needs neither the data nor anything but the weights and the folder's config.yaml."""
    (tmp_path / "moved").mkdir()
    for name in ("model.safetensors", "config.yaml"):
        (tmp_path / "moved" / name).write_bytes((folder_run / name).read_bytes())
    image = images / "test" / "dark" / "0.jpg"
    runs = ("moved", folder_run, "moved/model.safetensors")
    moved, original, weights = (longvision("predict", run, image, "--json").out for run in runs)
    assert moved == original == weights


def test_an_image_of_any_mode_and_size(longvision, folder_run):
    for mode, size in [("1", (5, 90)), ("P", (300, 7)), ("RGBA", (33, 33)), ("I;16", (16, 16)), ("CMYK", (20, 20))]:
        Image.new(mode, size).save(f"{mode.replace(';', '')}.{'jpg' if mode == 'CMYK' else 'png'}")
    answer = longvision("predict", folder_run, *sorted(Path().iterdir()), "--json")
    assert answer.code == 0 and answer.err.count("\n") == 1, answer.err
    assert "uint16" in answer.err and "65535" in answer.err  # the model saw 8 bits alone
    assert len(json.loads(answer.out)) == 5


def test_a_budget_of_time_is_told_in_tokens(longvision, digits_run, three):
    """So much time that there is enough for four times the 4 x 4 patches of training."""
    answer = longvision("predict", digits_run, *three, "--budget-ms", "1e9", "--json")
    assert answer.code == 0 and "at most 64 tokens" in answer.err
    expected = json.loads(longvision("predict", digits_run, *three, "--tokens", 64, "--json").out)
    assert json.loads(answer.out) == expected != json.loads(longvision("predict", digits_run, *three, "--json").out)
