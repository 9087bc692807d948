"""A run that was interrupted anywhere and went on has the weights of one that was not, to the last bit."""

import signal
from dataclasses import replace

import pytest
import torch

pytest.importorskip("lightning")
from longvision.data.order import EpochOrder
from longvision.engine import checkpoint_io
from longvision.engine.callbacks.checkpoints import LastCheckpoint
from longvision.engine.callbacks.position import Position
from support.counted import VARIED, Linear, fit

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = (8, 6)  # 4 or 7 images: 4 steps
PACKED = {"pack": True, "tokens": 24, "sizes": (4, 8), "sizes_by": "uniform", "drop": 0.3, "drop_by": "beta"}
BYTES = replace(VARIED, erase=0.0)
REPEATED = replace(VARIED, repeats=2)
HALVES = {"val_check_interval": 2}  # of 5 batches: after the 2nd and the 4th
CUT = {"batch_size": 2, "accumulate_grad_batches": 3, "limit_train_batches": 5}  # steps of 3 and 2 batches


def weights(task):
    return torch.cat([tensor.double().flatten() for tensor in task.model.state_dict().values()])


@pytest.fixture(autouse=True)
def _ctrl_c_as_it_was():
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored after an interruption


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(**options) -> a training that nobody stopped, made once."""
    made = {}

    def call(**options):
        key = str(sorted(options.items(), key=str))
        if key not in made:
            made[key] = fit(tmp_path_factory.mktemp("whole"), **options)
        return made[key]

    return call


@pytest.mark.parametrize(
    "stop, options",
    [
        pytest.param(("training_step", 1, 2), {}, id="in-a-step"),
        pytest.param(("on_train_batch_end", 1, 2), {}, id="after-a-step"),
        pytest.param(("on_train_batch_start", 1, 0), {}, id="before-the-first-step-of-an-epoch"),
        pytest.param(("on_train_epoch_start", 1, 0), {}, id="at-an-epoch-s-start"),
        pytest.param(("on_train_epoch_end", 0, 0), {}, id="at-an-epoch-s-end"),
        pytest.param(("on_train_batch_end", 0, 4), {}, id="after-the-last-step-of-an-epoch"),
        pytest.param(("validation_step", 0, 0), {}, id="while-it-validates"),
        pytest.param(("training_step", 0, 1), {}, id="in-the-first-epoch"),
        pytest.param(("training_step", 1, 3), {"accumulate_grad_batches": 2}, id="within-an-accumulation"),
        pytest.param(("training_step", 1, 2), {"accumulate_grad_batches": 3}, id="within-the-first-accumulation"),
        pytest.param(("training_step", 1, 4), CUT, id="within-the-last-accumulation"),
        pytest.param(("training_step", 1, 3), {"total_batch": 8}, id="within-a-total-batch"),
        pytest.param(("on_train_batch_end", 0, 3), {"total_batch": 8}, id="after-the-last-total-batch"),
        pytest.param(("training_step", 1, 3), {"max_steps": 9, "max_epochs": -1}, id="with-a-number-of-steps"),
        pytest.param(("on_train_epoch_end", 0, 0), {"max_steps": 9, "max_epochs": -1}, id="steps-between-epochs"),
        pytest.param(("training_step", 1, 3), HALVES, id="after-a-validation-within-an-epoch"),
        pytest.param(("validation_step", 1, 0), HALVES, id="in-a-validation-within-an-epoch"),
        pytest.param(("on_train_batch_start", 1, 2), HALVES, id="right-after-a-validation"),
        pytest.param(("training_step", 1, 2), {"limit_train_batches": 3}, id="with-a-limit"),
        pytest.param(("training_step", 1, 1), {"limit_val_batches": 0}, id="without-validation"),
        pytest.param(("training_step", 0, 1), {"check_val_every_n_epoch": 2}, id="an-epoch-without-validation"),
        pytest.param(("training_step", 1, 0), {"batch_size": 64}, id="fewer-images-than-a-batch"),
        pytest.param(("training_step", 1, 2), {"sizes": SIZES}, id="steps-of-several-sizes"),
        pytest.param(("validation_step", 0, 0), {"sizes": SIZES, "workers": 2}, id="several-sizes-with-workers"),
        pytest.param(("training_step", 1, 2), PACKED, id="packs"),
        pytest.param(("training_step", 1, 1), {**PACKED, "workers": 2, "augment": BYTES}, id="packs-with-workers"),
        pytest.param(("training_step", 1, 2), {"balance": True, "augment": REPEATED}, id="images-that-come-again"),
    ],
)
def test_an_interruption_changes_nothing(tmp_path, whole, stop, options):
    expected = whole(**options)
    first = fit(tmp_path, stop=stop, **options)
    assert len(first.seen) < len(expected.seen)
    second = fit(tmp_path, **options)
    assert torch.equal(weights(second), weights(expected))
    assert second.seen == expected.seen[len(expected.seen) - len(second.seen) :]  # and so what the first one kept
    assert set(first.validated) | set(second.validated) == set(expected.validated)


@pytest.mark.parametrize("options", [{"total_batch": 8}, {"accumulate_grad_batches": 2}], ids=["total", "accumulated"])
def test_an_epoch_has_whole_steps_only(whole, options):
    """Of 22 images in batches of 4: the fifth batch would be a step of its own, whose gradient counts half."""
    task = whole(**options)
    assert len(task.seen) == 2 * 16 and task.validated == [2, 4]


@pytest.mark.filterwarnings("error")
def test_a_total_batch_above_the_set_weighs_as_one_step_of_the_batches_there_are(whole):
    above, exact = whole(total_batch=64), whole(total_batch=20)
    assert torch.equal(weights(above), weights(exact))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "options", [CUT, {"count": 22, "batch_size": 16, "accumulate_grad_batches": 2}], ids=["a-limit", "a-small-set"]
)
def test_a_step_of_fewer_batches_is_told(tmp_path, options):
    with pytest.warns(UserWarning, match="the last step of an epoch has [12] of the [23] batches"):
        fit(tmp_path, **options)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, whole):
    """SIGKILL leaves no moment to save: what is there is what a validation within the epoch left."""
    expected = whole(**HALVES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_exception", lambda *_: None)
        first = fit(tmp_path, stop=("training_step", 1, 3), **HALVES)
    second = fit(tmp_path, **HALVES)
    assert torch.equal(weights(second), weights(expected))
    assert first.seen[: 7 * 4] + second.seen == expected.seen  # the 8th batch is in no checkpoint, so it came again


@pytest.mark.parametrize("workers", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_worker_processes_change_nothing(tmp_path, whole, workers):
    expected = whole()
    first = fit(tmp_path, stop=("on_train_batch_end", 1, 1), workers=workers)
    second = fit(tmp_path, workers=0)
    assert first.seen + second.seen == expected.seen
    assert torch.equal(weights(second), weights(expected))


@pytest.mark.parametrize("steps", [7, 5, 2], ids=["in-an-epoch", "at-its-end", "in-the-first"])
def test_a_run_that_ended_at_a_number_of_steps_goes_on(tmp_path, whole, steps):
    """Lightning takes the epoch that was left for a whole one."""
    first, second = fit(tmp_path, max_steps=steps), fit(tmp_path)
    assert first.seen + second.seen == whole().seen and len(first.seen) == 4 * steps
    assert torch.equal(weights(second), weights(whole()))


@pytest.mark.parametrize("every", [1, 3])
def test_a_killed_run_that_saves_every_so_many_steps(tmp_path, whole, every):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_exception", lambda *_: None)
        fit(tmp_path, stop=("training_step", 1, 3), save_every=every)
    second = fit(tmp_path, save_every=every)
    assert torch.equal(weights(second), weights(whole()))
    assert len(second.seen) == 4 * (
        2 if every == 1 else 4
    )  # of the second epoch, behind its 3rd step or the 6th in all


def test_with_mixup(tmp_path, whole):
    options = {"augment": replace(VARIED, mixup=0.5, cutmix=0.5)}
    fit(tmp_path, stop=("training_step", 1, 2), **options)
    assert torch.equal(weights(fit(tmp_path, **options)), weights(whole(**options)))


@pytest.mark.parametrize("size", [2, 3, 8])
def test_another_batch_size_continues_the_same_order(tmp_path, whole, size):
    """As after running out of memory."""
    expected = whole(max_epochs=1)
    first = fit(tmp_path, stop=("on_train_batch_end", 0, 1), max_epochs=1)
    second = fit(tmp_path, max_epochs=1, batch_size=size)
    rest = expected.seen[len(first.seen) :]
    assert second.seen[: len(rest)] == rest[: len(second.seen)]
    assert len(second.seen) == (22 - 8) // size * size


def test_another_accumulation_continues_the_same_order(tmp_path, whole):
    expected = whole()
    first = fit(tmp_path, stop=("on_train_batch_end", 1, 2))
    second = fit(tmp_path, accumulate_grad_batches=2, stop=("on_train_batch_end", 1, 4))
    third = fit(tmp_path)
    assert first.seen + second.seen + third.seen == expected.seen


def test_of_another_set_the_epoch_begins_again(tmp_path):
    fit(tmp_path, stop=("on_train_batch_end", 1, 2))
    second = fit(tmp_path, count=26)
    assert len(second.seen) == len(set(second.seen)) == 24


@pytest.mark.filterwarnings("default")
def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """Its checkpoint does not say where in its data it was: what Lightning's counters say, which is told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Position, "on_save_checkpoint", lambda *_: None)
        fit(tmp_path, stop=("on_train_batch_end", 1, 2))
    with pytest.warns(UserWarning, match="images come again, and others not at all"):
        assert len(fit(tmp_path).seen) == 2 * 4


@pytest.mark.filterwarnings("default")
def test_within_an_epoch_that_lightning_orders_it_begins_again(tmp_path, whole):
    options = {"overfit_batches": 3, "augment": replace(VARIED, flip=0.0)}
    fit(tmp_path, stop=("on_train_batch_end", 1, 1), **options)
    with pytest.warns(UserWarning, match=r"epoch 2 begins again.*overfit_batches"):
        again = fit(tmp_path, **options)
    assert again.seen == list(range(12))


def test_every_epoch_has_an_order_of_its_own(whole):
    seen = whole().seen
    epochs = [seen[:20], seen[20:]]
    assert epochs[0] != epochs[1]
    assert all(len(set(epoch)) == 20 for epoch in epochs)


@pytest.mark.parametrize("count, devices", [(22, 2), (22, 3), (2, 3)])
def test_devices_share_an_epoch_without_overlap(count, devices):
    def shares(epoch, begin):
        orders = [EpochOrder(count, 5, devices, rank) for rank in range(devices)]
        for order in orders:
            order.set_epoch(epoch, begin)
        return [list(order) for order in orders]

    alone = EpochOrder(count, 5)
    alone.set_epoch(3)
    whole, parts = list(alone), shares(3, 0)
    assert len({len(part) for part in parts}) == 1
    together = [draw for draws in zip(*parts) for draw in draws]
    if count >= devices:
        assert together == whole[: count // devices * devices]
    begin = 2 * devices  # two images each
    assert shares(3, begin) == [part[2:] for part in parts] or count < devices


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_inside_a_step_ends_the_run_after_it(tmp_path, whole, monkeypatch, name):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    step = Linear.training_step

    def signalled(self, batch, index):
        if (self.current_epoch, index) == (1, 2):
            signal.raise_signal(signal.Signals[name])
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Linear, "training_step", signalled)
        first = fit(tmp_path)
    assert first.seen == whole().seen[: 8 * 4]
    assert first.seen + fit(tmp_path).seen == whole().seen


def test_a_signal_within_an_accumulation_ends_the_run_after_its_step(tmp_path, whole, monkeypatch):
    step, options = Linear.training_step, {"accumulate_grad_batches": 2}

    def signalled(self, batch, index):
        if (self.current_epoch, index) == (1, 0):
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Linear, "training_step", signalled)
        first = fit(tmp_path, **options)
    second = fit(tmp_path, **options)
    assert len(first.seen) == 6 * 4 and first.seen + second.seen == whole(**options).seen  # no batch comes again
    assert torch.equal(weights(second), weights(whole(**options)))


def test_a_signal_that_is_repeated_does_not_end_the_saving(tmp_path, whole, monkeypatch):
    """As schedulers do."""
    step, seal = Linear.training_step, checkpoint_io.seal

    def again(path):
        signal.raise_signal(signal.SIGTERM)
        seal(path)

    def signalled(self, batch, index):
        if (self.current_epoch, index) == (1, 2):
            signal.raise_signal(signal.SIGTERM)
            patch.setattr(checkpoint_io, "seal", again)
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Linear, "training_step", signalled)
        first = fit(tmp_path)
    assert first.seen + fit(tmp_path).seen == whole().seen
