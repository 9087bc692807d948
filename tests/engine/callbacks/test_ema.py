"""The average of the weights: what it is, where it is, and what an interruption makes of it."""

import signal

import pytest
import torch

pytest.importorskip("lightning")
from longvision.engine.callbacks.ema import KEY, WeightAverage
from longvision.engine.report import read_checkpoint
from longvision.engine.run import Run
from support.counted import Linear, fit

pytestmark = pytest.mark.filterwarnings("ignore")


class Watched(WeightAverage):
    """Keeps the trained weights after each step."""

    def __init__(self, decay=0.5):
        super().__init__(decay)
        self.steps = []

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.first = copy_of(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        super().on_train_batch_end(trainer, pl_module)
        if trainer.global_step > len(self.steps):
            self.steps.append(copy_of(pl_module))


def copy_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def averaged(first, steps, decay):
    """In double precision, by its definition."""
    average = {name: tensor.double() for name, tensor in first.items()}
    for number, step in enumerate(steps, start=1):
        share = min(decay, (1 + number) / (10 + number))
        average = {name: share * value + (1 - share) * step[name].double() for name, value in average.items()}
    return average


def assert_equal(state, expected):
    floats = [name for name, tensor in state.items() if tensor.is_floating_point()]
    assert len(floats) > 5
    for name in floats:
        torch.testing.assert_close(state[name].double(), expected[name].double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("every", [1, 2])
def test_it_is_the_exponential_average_of_the_steps(tmp_path, every):
    average = Watched()
    task = fit(tmp_path, others=[average], accumulate_grad_batches=every)
    assert len(average.steps) == task.global_step
    expected = averaged(average.first, average.steps, 0.5)
    assert_equal(copy_of(task), expected)  # after training the model is the average
    checkpoint = torch.load(Run(tmp_path).last, weights_only=True)
    assert_equal(checkpoint["state_dict"], expected)
    assert_equal(checkpoint[KEY], average.steps[-1])
    assert_equal(read_checkpoint(Run(tmp_path).best), expected)


def test_it_is_what_validates(tmp_path, monkeypatch):
    average, seen = Watched(), []
    monkeypatch.setattr(Linear, "validation_step", lambda self, batch, index: seen.append(copy_of(self)))
    fit(tmp_path, others=[average], limit_val_batches=1)
    assert len(seen) == 2
    assert_equal(seen[0], averaged(average.first, average.steps[:5], 0.5))
    after = average.steps[5]  # and what trains goes on from the last step, not from the average
    assert not torch.equal(after["model.2.weight"], seen[0]["model.2.weight"])


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(("training_step", 1, 2), id="in-a-step"),
        pytest.param(("validation_step", 0, 0), id="while-it-validates"),
        pytest.param(("on_train_epoch_end", 0, 0), id="at-an-epoch-s-end"),
    ],
)
def test_an_interruption_changes_nothing(tmp_path, stop):
    expected = fit(tmp_path / "whole", others=[WeightAverage(0.5)])
    first = fit(tmp_path / "halves", stop=stop, others=[WeightAverage(0.5)])
    assert len(first.seen) < len(expected.seen)
    fit(tmp_path / "halves", others=[WeightAverage(0.5)])
    assert_same_end(tmp_path)


def assert_same_end(folder):
    saved = [torch.load(Run(folder / name).last, weights_only=True) for name in ("whole", "halves")]
    for key in ("state_dict", KEY):
        assert all(torch.equal(saved[0][key][name], saved[1][key][name]) for name in saved[0][key])


class Signalled(WeightAverage):
    """Gets one while the weights are exchanged for the `at`-th time."""

    def __init__(self, at):
        super().__init__(0.5)
        self.at = at

    def _swap(self):
        self.at -= 1
        before = self.own
        if self.at == 0:
            self.own = Halfway(before)
        try:
            super()._swap()
        finally:
            self.own = before


class Halfway(dict):
    def items(self):
        for number, item in enumerate(super().items()):
            if number == len(self) // 2:
                signal.raise_signal(signal.SIGTERM)
            yield item


@pytest.mark.parametrize("at", [1, 2, 5], ids=["before-a-validation", "after-it", "after-training"])
def test_a_signal_within_an_exchange_changes_nothing(tmp_path, at):
    """SIGTERM, or Ctrl-C; it comes between two tensors."""
    expected = fit(tmp_path / "whole", others=[WeightAverage(0.5)])
    first = fit(tmp_path / "halves", others=[Signalled(at)])
    assert first.trainer.interrupted and len(first.seen) == len(expected.seen) // (2 if at < 5 else 1)
    fit(tmp_path / "halves", others=[WeightAverage(0.5)])
    assert_same_end(tmp_path)


def test_a_shared_parameter_is_averaged_once(tmp_path, monkeypatch):
    create = Linear.create_model

    def tied(self, args):
        model = create(self, args)
        model.add_module("again", model[2])
        model.forward = lambda x: torch.nn.Sequential.forward(model[:6], x)
        return model

    monkeypatch.setattr(Linear, "create_model", tied)
    average = Watched()
    task = fit(tmp_path, others=[average])
    state = torch.load(Run(tmp_path).last, weights_only=True)["state_dict"]
    assert torch.equal(state["model.again.weight"], state["model.2.weight"])
    assert_equal(copy_of(task), averaged(average.first, average.steps, 0.5))
