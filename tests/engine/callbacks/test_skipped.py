"""A step whose loss or gradient is not finite changes nothing, is told with its images, and ends a training at last."""

import re
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning")
from longvision.engine.callbacks.skipped import SkippedSteps, _is_scaled
from longvision.errors import DivergedError
from support.counted import Linear, fit

BAD = {  # what makes a step bad -> of the loss
    "nan": lambda loss: loss * float("nan"),
    "inf": lambda loss: loss + float("inf"),  # its gradient is finite
    "gradient": lambda loss: (loss - loss.detach()).abs().sqrt() + loss.detach(),  # the slope of a root at 0
}


@pytest.fixture
def spoiled(monkeypatch):
    """spoiled(how, *batches): the losses of these (epoch, batch)."""

    def call(how, *batches):
        step = Linear.training_step

        def spoil(self, batch, index):
            loss = step(self, batch, index)
            return BAD[how](loss) if (self.current_epoch, index) in batches else loss

        monkeypatch.setattr(Linear, "training_step", spoil)

    return call


class Watched(SkippedSteps):
    """Keeps what the model is after each step."""

    def __init__(self, most=3):
        super().__init__(most, None, "do this")
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.states.append({name: tensor.clone() for name, tensor in pl_module.model.state_dict().items()})


def trained(folder, most=3, **options):
    watched = Watched(most)
    return fit(folder, others=[watched], **options), watched


@pytest.mark.parametrize("how", BAD)
@pytest.mark.parametrize("every", [1, 2])
def test_a_skipped_step_changes_no_weight_and_no_statistic(tmp_path, spoiled, how, every):
    spoiled(how, (0, 3))
    with pytest.warns(UserWarning, match="is skipped"):
        task, watched = trained(tmp_path, count=26, max_epochs=1, accumulate_grad_batches=every)
    before, after = watched.states[3 - every], watched.states[3]  # the step is of batch 3, or of batches 2 and 3
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in watched.states[-1].values())
    assert not all(torch.equal(watched.states[-1][name], after[name]) for name in after)  # and it goes on
    assert watched.skipped == 1
    assert all(state["step"] == task.global_step - 1 for state in task.optimizers().state.values())


def test_it_is_told_with_its_images_and_counted(tmp_path, spoiled):
    spoiled("nan", (0, 1), (0, 3))
    with pytest.warns(UserWarning) as told:
        task, _ = trained(tmp_path, max_epochs=1)
    words = [str(each.message) for each in told]
    for batch in (1, 3):
        images = ", ".join(f"number {number}" for number in task.seen[4 * batch :][:4])
        assert f"step {batch} is skipped, its loss is not finite; its 4 images: {images}" in words
    assert "2 of 5 steps were skipped, their loss or gradient was not finite" in words


def test_of_an_accumulated_step_the_bad_batch_is_named(tmp_path, spoiled):
    spoiled("nan", (0, 3))
    with pytest.warns(UserWarning) as told:
        task, _ = trained(tmp_path, max_epochs=1, accumulate_grad_batches=2)
    images = ", ".join(f"number {number}" for number in task.seen[12:16])
    assert any(f"its 4 images: {images}" in str(each.message) for each in told)


@pytest.mark.filterwarnings("ignore")
def test_after_so_many_in_a_row_training_ends(tmp_path, spoiled):
    spoiled("nan", (0, 1), (0, 3), (0, 4), (1, 0))
    with pytest.raises(DivergedError, match=re.escape("in 3 steps in a row, up to step 5: do this")):
        trained(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_weight_that_is_not_finite_ends_it_at_once(tmp_path, spoiled, monkeypatch):
    spoiled("nan", (0, 2))
    step = Linear.training_step

    def poison(self, batch, index):
        if index == 2:
            next(self.parameters()).data.view(-1)[0] = float("inf")
        return step(self, batch, index)

    monkeypatch.setattr(Linear, "training_step", poison)
    with pytest.raises(DivergedError, match="a weight is not finite at step 2"):
        trained(tmp_path)


def test_a_run_that_goes_on_counts_on_and_names_the_right_images(tmp_path, spoiled):
    spoiled("nan", (0, 1), (1, 3))
    with pytest.warns(UserWarning):
        _, watched = trained(tmp_path, stop=("training_step", 1, 2))
    assert watched.skipped == 1
    with pytest.warns(UserWarning) as told:
        task, watched = trained(tmp_path)
    assert watched.skipped == 2
    images = ", ".join(f"number {number}" for number in task.seen[4:8])  # batch 2 comes again, and then 3
    assert any(f"step 8 is skipped, its loss is not finite; its 4 images: {images}" == str(t.message) for t in told)


@pytest.mark.parametrize("scale, scaled", [(65536.0, True), (1.0, True), (0.5, False), (None, False)])
def test_a_gradient_that_overflows_is_the_scale_s_until_there_is_none_left(scale, scaled):
    """Of float16: then it is a gradient that is not finite."""
    scaler = None if scale is None else SimpleNamespace(get_scale=lambda: scale)
    assert _is_scaled(SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))) == scaled
