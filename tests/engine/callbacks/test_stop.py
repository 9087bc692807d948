"""Signals end a training where it can be saved."""

import signal
from types import SimpleNamespace

import pytest

pytest.importorskip("lightning")
from longvision.engine.callbacks.stop import Agreed, AtOnce, Stop

MOMENTS = ["on_train_batch_end", "on_validation_end"]


def make_trainer(processes=1, others=False):
    strategy = SimpleNamespace(reduce_boolean_decision=lambda asked, all: asked or others)
    return SimpleNamespace(
        world_size=processes, sanity_checking=False, strategy=strategy, accumulate_grad_batches=1, is_last_batch=False
    )


def reach(callback, moment, trainer, batch=0):
    """A moment of the training."""
    getattr(callback, moment)(trainer, None, *((None, None, batch) if "batch" in moment else ()))


@pytest.fixture
def stop(monkeypatch):
    """stop(trainer) -> the callback in a training; handlers are as they were afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def started(trainer):
        callback = Stop()
        callback.on_train_start(trainer, None)
        return callback

    yield started
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [*MOMENTS, "on_validation_batch_end", "on_train_end"])
def test_one_waits_until_the_state_is_whole(stop, number, moment):
    trainer = make_trainer()
    callback = stop(trainer)
    reach(callback, moment, trainer)
    callback.on_train_start(trainer, None)
    signal.raise_signal(number)
    with pytest.raises(Agreed):
        reach(callback, moment, trainer)


def test_a_second_ctrl_c_does_not_wait(stop):
    stop(make_trainer())
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # schedulers repeat theirs
    with pytest.raises(AtOnce):
        signal.raise_signal(signal.SIGINT)


def test_slurm_s_word_is_a_signal_in_its_jobs(stop, monkeypatch):
    before = signal.getsignal(signal.SIGUSR1)
    stop(make_trainer())
    assert signal.getsignal(signal.SIGUSR1) == before
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    callback = stop(make_trainer())
    signal.raise_signal(signal.SIGUSR1)
    assert callback.asked
    callback.on_exception(None, None, Agreed())
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("others", [False, True])
def test_several_processes_agree(stop, moment, others):
    """A signal to one of them raises nothing there, also between steps."""
    trainer = make_trainer(2, others)
    callback = stop(trainer)
    if not others:
        reach(callback, moment, trainer)
        signal.raise_signal(signal.SIGTERM)
        callback.on_validation_batch_end(trainer)  # the others may be in another batch
    with pytest.raises(Agreed):
        reach(callback, moment, trainer)


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_that_are_accumulated_are_one_step(stop, processes):
    """Between them the processes do not wait for each other."""
    trainer, asked = make_trainer(processes), []
    trainer.accumulate_grad_batches = 3
    trainer.strategy.reduce_boolean_decision = lambda one, all: asked.append(one)
    callback = stop(trainer)
    for batch in range(7):
        trainer.is_last_batch = batch == 6
        reach(callback, "on_train_batch_end", trainer, batch)
    assert len(asked) == (0 if processes == 1 else 3)
    signal.raise_signal(signal.SIGTERM)
    trainer.is_last_batch, trainer.strategy.reduce_boolean_decision = False, lambda one, all: one
    reach(callback, "on_train_batch_end", trainer, 1)
    with pytest.raises(Agreed):
        reach(callback, "on_train_batch_end", trainer, 2)
