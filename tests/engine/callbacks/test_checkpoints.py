"""What an interruption or an error leaves."""

import pytest

pytest.importorskip("lightning")
from lightning.pytorch.callbacks import ModelCheckpoint

from longvision.engine.callbacks.checkpoints import LastCheckpoint
from longvision.errors import DivergedError, UserError


@pytest.mark.parametrize(
    "error, saved",
    [
        (KeyboardInterrupt(), True),
        (ValueError("more than 1 % of the images cannot be read"), True),
        (UserError("no space"), True),
        (RuntimeError("a bug"), True),
        (DivergedError("nan"), False),
    ],
)
def test_only_a_model_that_diverged_is_not_saved(monkeypatch, tmp_path, error, saved):
    done = []
    monkeypatch.setattr(ModelCheckpoint, "on_exception", lambda *_: done.append(1))
    LastCheckpoint(dirpath=tmp_path).on_exception(None, None, error)
    assert bool(done) == saved
