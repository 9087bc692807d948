"""Two processes train one model on the CPU, over gloo: however they were started, there is one run and one result."""

import csv
import json

import pytest
import torch
from safetensors import safe_open

pytest.importorskip("lightning")
from support.launched import launch, torchrun

pytestmark = pytest.mark.slow  # each process imports PyTorch and Lightning

# The losses of the two processes differ by far, so that those of one cannot pass for those of both.
PROGRAM = """
import json, sys
from collections import defaultdict
import torch
from lightning import seed_everything
from longvision.data.config import DigitsData
from longvision.engine.run import Run
from longvision.engine.trainer import make_trainer, train
from longvision.tasks.classification import Classification
from longvision.tasks.config import ClassificationConfig

class Skewed(Classification):
    own = defaultdict(list)

    def forward(self, x_BCHW):
        return self.model(x_BCHW) * (1 + 30 * self.global_rank)

    def log_loss(self, split, loss, weight):
        self.own[f"{split}/loss"].append((self.current_epoch, loss.item(), int(weight)))
        super().log_loss(split, loss, weight)

    @classmethod
    def monitor(cls):
        return "val/first"  # the best epoch is the first, whose weights are not the last ones

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("val/first", 1.0 - self.current_epoch, sync_dist=True)

torch.set_num_threads(1)
seed_everything(0, workers=True, verbose=False)
data = DigitsData(size=16, workers=0, batch_size=50).build()
task = Skewed(ClassificationConfig(name="vim_nano_patch4_32", args={"depth": 1, "embed_dim": 16}), data.info)
trainer = make_trainer({"accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 2,
                        "limit_train_batches": 2, "limit_test_batches": 1, "num_sanity_val_steps": 0})
run = None
if trainer.is_global_zero:
    run = Run.create(sys.argv[1], "x")
    run.new_config().write_text("{}")
outcome = train(trainer, task, data, run)
total = sum(parameter.double().sum().item() for parameter in task.model.parameters())
said = {"rank": trainer.global_rank, "total": total, "metrics": outcome.metrics, "own": task.own}
with open(f"{sys.argv[1]}-{trainer.global_rank}.json", "w") as file:
    json.dump(said, file)
"""

RESUMED = """
import json, sys, warnings
from pathlib import Path
from support.counted import fit

warnings.simplefilter("ignore")
folder, devices = Path(sys.argv[1]), {"devices": 2, "strategy": "ddp"}
folder.mkdir(exist_ok=True)
whole = fit(folder / "whole", **devices)
first = fit(folder / "broken", stop=("training_step", 1, 1), **devices)
second = fit(folder / "broken", **devices)
said = {"seen": [task.seen for task in (whole, first, second)]}
said["weights"] = [[x.tolist() for x in task.model.state_dict().values()] for task in (whole, second)]
with open(f"{folder}-{whole.trainer.global_rank}.json", "w") as file:
    json.dump(said, file)
"""

EQUAL = """
import json, os, sys, warnings
from pathlib import Path
import torch
from torch import nn
from longvision.engine.callbacks.ema import WeightAverage
from longvision.engine.callbacks.skipped import SkippedSteps
from support.counted import SIDE, Linear, fit

warnings.simplefilter("ignore")

class Plain(Linear):  # neither dropout nor batch norm, which see a device's images alone
    def create_model(self, args):
        layers = nn.Linear(3 * SIDE * SIDE, 6), nn.Tanh(), nn.Linear(6, len(self.info.classes))
        return nn.Sequential(nn.Flatten(), *layers)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        bad = self.poisoned and (self.current_epoch, index) == (0, 1) and self.global_rank == 1
        return loss * float("nan") if bad else loss

def trained(poisoned, **options):
    Plain.poisoned = poisoned
    skipped = SkippedSteps(3, None, "")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        task = fit_it(skipped, poisoned, options)
    named = sum("images: number" in str(each.message) for each in told)
    return [skipped.skipped, [x.tolist() for x in task.model.state_dict().values()], named]

def fit_it(skipped, poisoned, options):
    return fit(folder / str(options) / str(poisoned), 16, task=Plain, others=[skipped, WeightAverage(0.5)], **options)

folder = Path(sys.argv[1])
two = {"devices": 2, "strategy": "ddp", "batch_size": 4}
said = {"two": trained(False, **two), "poisoned": trained(True, **two)}
rank = int(os.environ["RANK"])
torch.distributed.destroy_process_group()
for name in [name for name in os.environ if "RANK" in name or "WORLD_SIZE" in name or "ELASTIC" in name]:
    del os.environ[name]
if rank == 0:
    said["one"] = trained(False, devices=1, batch_size=8)
    said["accumulated"] = trained(False, devices=1, batch_size=4, accumulate_grad_batches=2)
with open(f"{folder}-{rank}.json", "w") as file:
    json.dump(said, file)
"""


SIZES = """
import json, os, sys, warnings
from pathlib import Path
from longvision.data.augment import Augment
from support.counted import fit

warnings.simplefilter("ignore")
folder, two = Path(sys.argv[1]), {"devices": 2, "strategy": "ddp"}
plain = Augment(crop_scale=(0.5, 1.0))
MULTI = {"sizes": (8, 6), "count": 30, "augment": plain}
PACKS = {"pack": True, "tokens": 32, "sizes": (4, 8), "sizes_by": "uniform", "count": 32, "augment": plain}
said, rank = {}, int(os.environ["RANK"])
for name, options in {"multi": MULTI, "packs": PACKS}.items():
    whole = fit(folder / name / "whole", **two, **options)
    first = fit(folder / name / "broken", stop=("training_step", 1, 1), **two, **options)
    second = fit(folder / name / "broken", **two, **options)
    weights = [[x.tolist() for x in task.model.state_dict().values()] for task in (whole, second)]
    steps = whole.trainer.num_training_batches
    said[name] = {"seen": [task.seen for task in (whole, first, second)], "weights": weights, "steps": steps}
with open(f"{folder}-{rank}.json", "w") as file:
    json.dump(said, file)
"""


@pytest.fixture
def start(tmp_path):
    """Run a program under a launcher -> what each rank said, and the folder of their runs."""

    def started(*launcher, text=PROGRAM):
        done = launch(tmp_path, text, *launcher)
        assert done.returncode == 0, done.stderr
        return [json.loads((tmp_path / f"runs-{rank}.json").read_text()) for rank in range(2)], tmp_path / "runs"

    return started


def check_one_run(said, runs):
    first, second = said
    (run,) = runs.iterdir()
    names = ("model.safetensors", "README.md", "metrics.csv", "curves.png", "checkpoints/best.ckpt")
    assert [(run / name).is_file() for name in names] == [True] * len(names)

    with safe_open(run / "model.safetensors", "pt") as file:
        kept = sum(file.get_tensor(name).double().sum().item() for name in list(file.keys()))
        metadata = json.loads(file.metadata()["longvision"])
    # both have the weights of the best epoch, and not each those of its last step
    assert first["total"] == second["total"] == pytest.approx(kept, rel=1e-12)
    assert first["metrics"] == second["metrics"]
    assert metadata["metrics"]["test/accuracy"] == first["metrics"]["accuracy"]

    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for epoch, row in enumerate(rows):
        for name in ("train/loss", "val/loss"):
            batches = [(loss, weight) for one in said for number, loss, weight in one["own"][name] if number == epoch]
            mean = sum(loss * weight for loss, weight in batches) / sum(weight for _, weight in batches)
            assert float(row[name]) == pytest.approx(mean, rel=1e-4), name
    losses = [one["own"]["val/loss"][0][1] for one in said]
    assert abs(losses[0] - losses[1]) > 0.1  # or a mean over one of them would not be seen


def test_lightning_starts_the_second_process(start):
    check_one_run(*start())


def test_torchrun_starts_both(start):
    """It tells neither process the other's folder."""
    check_one_run(*start(*torchrun()))


def test_a_run_that_was_interrupted_inside_an_epoch_goes_on(start):
    """Each process with its own images, as if there had been no break."""
    said, _ = start(*torchrun(), text=RESUMED)
    for one in said:
        whole, first, second = one["seen"]
        assert len(whole) == 16 and first + second == whole
        assert one["weights"][0] == one["weights"][1] == said[0]["weights"][0]
    assert not set(said[0]["seen"][0][:8]) & set(said[1]["seen"][0][:8])


def test_two_train_as_one_on_all_their_images(start):
    """To rounding: the same weights and the same average of them. A step is skipped by both where one has no number."""
    said, _ = start(*torchrun(), text=EQUAL)
    assert said[0]["two"] == said[1]["two"] and said[0]["poisoned"][:2] == said[1]["poisoned"][:2]
    assert (said[0]["two"][0], said[0]["poisoned"][0]) == (0, 1)
    assert [one["poisoned"][2] for one in said] == [0, 1]  # the images are the second's

    def weights(name):
        return [torch.tensor(tensor) for tensor in said[0][name][1]]

    for other in ("one", "accumulated"):
        torch.testing.assert_close(weights("two"), weights(other), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(weights("two")[0], weights("poisoned")[0], atol=1e-4)
    assert all(tensor.isfinite().all() for tensor in weights("poisoned"))


def test_steps_of_several_sizes_and_packs_are_shared_and_go_on(start):
    said, _ = start(*torchrun(), text=SIZES)
    for name in ("multi", "packs"):
        mine, other = (one[name] for one in said)
        assert mine["steps"] == other["steps"] > 2
        assert mine["weights"][0] == mine["weights"][1] == other["weights"][0]
        for whole, first, second in (mine["seen"], other["seen"]):
            assert first and first + second == whole
    whole = [one["multi"]["seen"][0] for one in said]
    epochs = [row for seen in whole for row in seen[: len(seen) // 2]]
    assert len(set(epochs)) == len(epochs)  # no image twice, on whichever device
