"""Changed data is a run's own once its weights have seen it."""

import pytest

pytest.importorskip("lightning")
from longvision.engine.callbacks.once_trained import OnceTrained
from support.counted import fit

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("step, written", [(0, 0), (1, 1)], ids=["fails-at-once", "fails-later"])
def test_called_with_the_first_checkpoint_that_has_trained(tmp_path, step, written):
    calls = []
    fit(tmp_path, stop=("on_train_batch_end", 0, 1))
    fit(tmp_path, stop=("training_step", 0, 2 + step), callbacks=[OnceTrained(lambda: calls.append(1))])
    assert len(calls) == written
