"""A new file format touches one place: its own file, and a line of the registry."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

from longvision.data.config import ClassificationConfig
from longvision.data.sources.base import Source
from longvision.errors import UserError
from longvision.registry import TASKS
from longvision_cli.main import main


class StripedImages:
    """Stripes that lie or stand, one pixel wide or as wide as said."""

    def __init__(self, count, width):
        self.count, self.width = count, width

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rows = np.repeat(np.arange(16) // self.width % 2 * 255, 16).reshape(16, 16).astype(np.uint8)
        return Image.fromarray(rows if index % 2 else rows.T), index % 2


class StripeSource(Source[int]):
    has_test = False
    classes = ("standing", "lying")

    def __init__(self, path, width):
        self.name, self.width = path, width
        if width > 8:
            raise UserError(f"width {width}: expected at most 8 pixels")

    def split(self, split):
        return StripedImages({"train": 32, "val": 8}[split], self.width)


@dataclass(frozen=True, kw_only=True)
class StripeData(ClassificationConfig):
    """Stripes.

    Args:
        path: where they are said to be.
        width: of a stripe, pixels.
    """

    path: str = field(kw_only=False)
    width: int = 2

    def source(self):
        return StripeSource(self.path, self.width)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(TASKS["classification"].sources, "stripes", f"{__name__}.StripeData")


OPTIONS = "--task classification --source stripes --data.path here --data.size 16 --data.channels 1".split()  # noqa: SIM905


def test_it_is_checked_and_trains(registered, tmp_path, capsys):
    assert main(["check-data", *OPTIONS, "--out", str(tmp_path / "drawn")]) == 0
    assert "32 train, 8 val" in capsys.readouterr().out and (tmp_path / "drawn/samples.png").is_file()
    model = "--model.name vim_nano_patch4_32 --model.args.depth 1 --model.args.embed_dim 16".split()  # noqa: SIM905
    limits = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--data.workers", "0"]
    assert main(["train", *OPTIONS, *model, *limits, "--runs", str(tmp_path / "runs")]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "model.safetensors").is_file()


def test_its_options_are_shown_and_its_mistakes_told(registered, capsys):
    with pytest.raises(SystemExit):
        main(["train", *OPTIONS, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "of a stripe, pixels",
        "where they are said to be",
        "1 for grey, 3 for colour",
        "probability of mirr",
    ):
        assert words in shown  # its own, and what it inherits
    assert main(["check-data", *OPTIONS, "--data.width", "9"]) == 2
    assert "width 9" in capsys.readouterr().err
