"""Changed data is a run's own once its weights have seen it."""

import pytest

pytest.importorskip("lightning")
from longvision.data.fingerprint import Fingerprint
from longvision.engine.callbacks.data_file import DataFile
from support.counted import fit

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("step, written", [(0, False), (1, True)], ids=["fails-at-once", "fails-later"])
def test_written_with_the_first_checkpoint_that_has_trained(tmp_path, step, written):
    fit(tmp_path, stop=("on_train_batch_end", 0, 1))
    path = tmp_path / "data-resumed-1.json"
    noted = Fingerprint(["cat", "dog"])
    fit(tmp_path, stop=("training_step", 0, 2 + step), callbacks=[DataFile(path, noted)])
    assert path.exists() == written
    if written:
        assert Fingerprint.read(path) == noted
