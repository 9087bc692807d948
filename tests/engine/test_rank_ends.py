"""Two processes over gloo, one of which dies or gets a signal: both end, with a word."""

import json

import pytest

pytest.importorskip("lightning")
from support.launched import launch, torchrun

pytestmark = pytest.mark.slow  # each process imports PyTorch and Lightning
HANGS = 120  # seconds; the processes wait for each other half an hour

PROGRAM = """
import json, os, signal, sys, warnings
from pathlib import Path
from longvision.errors import UserError
from support.counted import Linear, fit

warnings.simplefilter("ignore")
folder, devices = Path(sys.argv[1]), {"devices": 2, "strategy": "ddp"}

class Ending(Linear):
    def training_step(self, batch, index):
        if (self.current_epoch, index, self.global_rank) == (1, 1, RANK):
            END
        return super().training_step(batch, index)

"""
DEATH = (
    PROGRAM
    + """
try:
    fit(folder, task=Ending, **devices)
except UserError as error:
    print(f"told: {error}", file=sys.stderr)
    sys.exit(2)
"""
)
SIGNAL = (
    PROGRAM
    + """
whole = fit(folder / "whole", **devices)
first = fit(folder / "broken", task=Ending, **devices)
second = fit(folder / "broken", **devices)
said = {"seen": [task.seen for task in (whole, first, second)]}
said["weights"] = [[x.tolist() for x in task.model.state_dict().values()] for task in (whole, second)]
Path(f"{folder}-{whole.trainer.global_rank}.json").write_text(json.dumps(said))
"""
)
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


def program(text, end, rank=1):
    return text.replace("RANK)", f"{rank})").replace("END", end)


@pytest.mark.parametrize(
    "launcher, end, rank",
    [
        pytest.param(list, KILLED, 1, id="Lightning-killed"),
        pytest.param(torchrun, KILLED, 0, id="torchrun-killed"),
        pytest.param(list, "raise ValueError('a bug of one')", 0, id="Lightning-raises"),
    ],
)
def test_the_others_end_with_a_word(tmp_path, launcher, end, rank):
    done = launch(tmp_path, program(DEATH, end, rank), *launcher(), timeout=HANGS)
    assert done.returncode != 0
    assert f"told: process {1 - rank} of 2 has lost another one" in done.stderr
    assert end is KILLED or "a bug of one" in done.stderr
    names = {path.name for path in (tmp_path / "runs" / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt"}  # of the first epoch, and nothing half written


@pytest.mark.parametrize("launcher", [list, torchrun], ids=["Lightning", "torchrun"])
def test_a_signal_to_the_second_ends_both_after_the_step(tmp_path, launcher):
    """They save together, and go on as if there had been no break."""
    done = launch(tmp_path, program(SIGNAL, "os.kill(os.getpid(), signal.SIGTERM)"), *launcher(), timeout=HANGS)
    assert done.returncode == 0, done.stderr
    for one in (json.loads((tmp_path / f"runs-{number}.json").read_text()) for number in range(2)):
        whole, first, second = one["seen"]
        assert len(first) == len(whole) // 2 + 8 and first + second == whole  # of the second epoch two steps
        assert one["weights"][0] == one["weights"][1]
