"""report.html of a run: what it says, and how a browser shows it."""

import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lightning")
from torch import nn

from longvision.data.fingerprint import Fingerprint
from longvision.data.fingerprint import Image as Known
from longvision.engine.report import Outcome
from longvision.engine.run import Run
from longvision.engine.run_page import write_page
from longvision.viz import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
MAGENTA, NASTY = (200, 0, 200), "<b>cat & dog</b>"


@pytest.fixture
def run(tmp_path):
    run = Run.create(tmp_path, "x")
    run.new_config().write_text("model:\n  name: vim_nano_patch4_32\n")
    run.metrics.write_text(
        "epoch,train/loss,val/loss,val/accuracy,speed/images_per_second,speed/memory_gb,seconds\n"
        "1,2.0,1.5,0.5,100,1.5,3661\n2,1.0,0.75,0.75,300,2.25,1\n3,1.0,0.75,0.75,200,2,1\n"
    )
    Image.new("RGB", (3000, 100), MAGENTA).save(run.path / "predictions.png")
    return run


def write(run, **metrics):
    task = SimpleNamespace(
        config=SimpleNamespace(name="vim_nano_patch4_32"), info=SimpleNamespace(name=NASTY),
        metric_names={"accuracy": "accuracy"}, model=nn.Linear(3, 4),
        sections=lambda data, split: {"Worst mistakes": page.images([page.Shown(Image.new("L", (8, 8)), [NASTY])])},
    )  # fmt: skip
    images = {"train": [Known("a.png", NASTY), Known("b.png", "dog")], "val": [Known("c.png", "dog")]}
    data = SimpleNamespace(
        name="set", size=(32, 48), channels=3, fingerprint=Fingerprint([NASTY, "dog"], drawn=True, images=images),
        source=SimpleNamespace(notes=["2 files were not used"]),
    )  # fmt: skip
    outcome = Outcome("val", metrics, {"accuracy": "accuracy"} if metrics else {})
    write_page(task, data, run, outcome, run.path / "report.html")
    return (run.path / "report.html").read_text(encoding="utf-8")


def test_what_it_says(run):
    text = write(run, loss=0.75, accuracy=0.75, auroc=float("nan"))
    for said in (
        "<b>75.0 %</b>accuracy", "<b>0.7500</b>loss", "<b>–</b>auroc", "of the best epoch, on the validation images",
        "2 training, 1 validation", "drawn from the training images", "2 files were not used", "32x48 pixels",
        "<td>1:01:03 for 3 epochs</td>", "<td>200.0 (median", "<td>2.25 GB</td>", "<td>16</td>",
        "name: vim_nano_patch4_32", "<td>torch</td>",
    ):  # fmt: skip
        assert said in text, said
    assert text.index("<h2>Result") < text.index("<h2>Curves") < text.index("<h2>Worst mistakes")
    assert NASTY not in text and "&lt;b&gt;cat &amp; dog" in text


def test_of_a_run_without_an_evaluation_or_an_epoch(run):
    run.metrics.unlink()
    (run.path / "predictions.png").unlink()
    text = write(run)
    assert "not evaluated" in text and "Curves" not in text and "Examples" not in text


@pytest.fixture
def browser(tmp_path):
    """browser(*options) -> what Chromium prints."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")

    def browse(*options):
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
        alone = ["--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run([found, *quiet, *alone, *options], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return browse


@pytest.mark.slow
@pytest.mark.parametrize("width, scheme", [(1200, "light"), (420, "dark")])
def test_a_browser_shows_it(run, browser, tmp_path, width, scheme):
    write(run, loss=0.75, accuracy=0.75)
    address = (run.path / "report.html").as_uri()
    seen = browser("--dump-dom", address)
    assert "<h1>vim_nano_patch4_32 on &lt;b&gt;cat &amp; dog&lt;/b&gt;</h1>" in seen and seen.count("<h2>") == 8
    preferred = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    browser(preferred, f"--window-size={width},2600", f"--screenshot={tmp_path / 'seen.png'}", address)
    with Image.open(tmp_path / "seen.png") as shown:
        pixels = np.asarray(shown.convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    assert (pixels[2, 2] > 200).all() if scheme == "light" else (pixels[2, 2] < 60).all()
    examples = (np.abs(pixels - MAGENTA).max(-1) < 20).any(0)
    # all of the wide image is on the page, whose margins it leaves free
    assert examples.sum() > 0.8 * width and not examples[:8].any() and not examples[-8:].any()
