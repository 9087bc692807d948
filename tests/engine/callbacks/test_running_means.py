"""metrics.csv of a run that was interrupted is that of a run without a break."""

import pytest

pytest.importorskip("lightning")
from longvision.engine.callbacks import history
from support.counted import Linear, fit

pytestmark = pytest.mark.filterwarnings("ignore")


class Logged(Linear):
    """As a task of ours logs."""

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.log_loss("train", loss, len(batch[0]))
        return loss


def rows(folder):
    """But for what the clock says."""
    _, rows = history._read(folder / "metrics.csv")
    return [{name: row[name] for name in ("epoch", "step", "lr", "train/loss", "val/score")} for row in rows]


@pytest.mark.parametrize(
    "stop, options",
    [
        pytest.param(("training_step", 1, 2), {}, id="in-a-step"),
        pytest.param(("after_the_loss", 1, 2), {}, id="between-the-loss-and-the-step"),
        pytest.param(("on_train_batch_end", 0, 2), {}, id="after-a-step"),
        pytest.param(("on_train_epoch_start", 1, 0), {}, id="between-epochs"),
        pytest.param(("on_train_batch_end", 0, 4), {}, id="after-the-last-step"),
        pytest.param(("training_step", 1, 3), {"accumulate_grad_batches": 2}, id="within-an-accumulation"),
        pytest.param(("after_the_loss", 1, 4), {"val_check_interval": 2}, id="after-the-last-validation"),
    ],
)
def test_a_break_does_not_show(tmp_path, stop, options):
    options |= {"task": Logged, "limit_val_batches": 1}
    whole = fit(tmp_path / "whole", **options)
    fit(tmp_path / "broken", stop=stop, **options)
    again = fit(tmp_path / "broken", **options)
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    assert again.global_step == whole.global_step


def test_four_breaks(tmp_path):
    fit(tmp_path / "whole", task=Logged)
    for stop in (
        ("training_step", 1, 2),
        ("after_the_loss", 1, 2),
        ("training_step", 1, 3),
        ("on_train_batch_end", 1, 4),
    ):
        fit(tmp_path / "broken", task=Logged, stop=stop)
    fit(tmp_path / "broken", task=Logged)
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
