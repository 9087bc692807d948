"""What an interruption or an error leaves."""

from types import SimpleNamespace

import pytest

pytest.importorskip("lightning")
from lightning.pytorch.callbacks import ModelCheckpoint

from longvision.engine.callbacks.checkpoints import LastCheckpoint
from longvision.engine.callbacks.stop import Agreed, AtOnce
from longvision.errors import DivergedError, UnsavedError, UserError


@pytest.mark.parametrize(
    "error, alone, together",
    [
        (KeyboardInterrupt(), True, False),
        (Agreed(), True, True),
        (AtOnce(), False, False),
        (ValueError("more than 1 % of the images cannot be read"), True, False),
        (UserError("no space"), True, False),
        (RuntimeError("a bug"), True, False),
        (DivergedError("nan"), False, False),
        (UnsavedError("a full disk"), False, False),
    ],
)
def test_what_is_saved_at_an_end(monkeypatch, tmp_path, error, alone, together):
    """Not a model that diverged, and of several processes nothing that one alone knows of: it would wait for others."""
    done = []
    monkeypatch.setattr(ModelCheckpoint, "on_exception", lambda *_: done.append(1))
    for processes, saved in ((1, alone), (2, together)):
        done.clear()
        LastCheckpoint(dirpath=tmp_path).on_exception(SimpleNamespace(world_size=processes), None, error)
        assert bool(done) == saved
