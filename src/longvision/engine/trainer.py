"""One training run from the first step to its report: Lightning's Trainer is the loop."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from longvision.engine.callbacks.checkpoints import LastCheckpoint, RunCheckpoint
from longvision.engine.callbacks.ema import WeightAverage
from longvision.engine.callbacks.history import EpochTable
from longvision.engine.callbacks.once_trained import OnceTrained
from longvision.engine.callbacks.position import Position
from longvision.engine.callbacks.progress import RunProgress, time_left
from longvision.engine.callbacks.running_means import RunningMeans
from longvision.engine.callbacks.skipped import SkippedSteps
from longvision.engine.callbacks.stop import Stop
from longvision.engine.callbacks.throughput import Throughput
from longvision.engine.callbacks.unreadable import UnreadableImages
from longvision.engine.checkpoint_io import RunCheckpointIO
from longvision.engine.loggers import make_loggers
from longvision.engine.ranks import lost_peers_named
from longvision.engine.report import Outcome, read_checkpoint, write_report
from longvision.engine.run import Run
from longvision.engine.run_data import check_unchanged
from longvision.engine.strategy import TIMEOUT, ShardedStrategy, cluster, make_strategy
from longvision.engine.total_batch import WholeSteps, keep_total_batch
from longvision.errors import UserError
from longvision.tasks.task import Task


def make_trainer(options: dict[str, Any]) -> Trainer:
    """Lightning's Trainer with a progress bar of ours, and quiet. It writes nothing until `train` gives it a run.

    Where no precision is asked for it is bfloat16 autocast on a CUDA GPU, float32 elsewhere.

    Raises:
        UserError: options that Lightning refuses.
    """
    if 0 in (options.get("max_epochs"), options.get("max_steps")):
        raise UserError("--trainer.max_epochs and --trainer.max_steps must not be 0: there would be nothing to train")
    options = {
        **options,
        "strategy": make_strategy(options.get("strategy", "auto")),
        "precision": options.get("precision") or _precision(options.get("accelerator", "auto")),
        # the first gathers over devices, and must do it before one that makes the first process gather metrics
        "callbacks": [UnreadableImages(), *(options.get("callbacks") or []), Throughput(), RunProgress()],
    }
    try:
        trainer = Trainer(
            **options,
            plugins=[RunCheckpointIO(), *cluster()],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"--trainer: {error}") from error
    if hasattr(trainer.strategy, "_timeout"):
        trainer.strategy._timeout = TIMEOUT
    return trainer


def _precision(accelerator: str) -> str:
    """bf16 on a CUDA GPU that computes in it natively; float16 is never chosen for somebody."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def train(
    trainer: Trainer,
    task: Task,
    data: Any,
    run: Run | None,
    resume: Path | None = None,
    wandb: str | None = None,
    save_every: int = 0,
) -> Outcome:
    """Fit, take the epoch that validated best, and write everything into the run's folder.

    Args:
        trainer: from `make_trainer`.
        task: the model with its loss.
        data: its images. What they are is noted in the run's folder.
        run: an open run folder. Of several processes the first needs one (`trainer.is_global_zero`), and tells the
            others: so there is one, however they were started.
        resume: a checkpoint to go on from. The source of `data` is what `run_data.resumed_source` made of it.
        wandb: a project of Weights & Biases to log to.
        save_every: a checkpoint after so many steps too; 0 for after epochs and validations alone.

    Raises:
        KeyboardInterrupt: stopped by hand; the state is in the run's last checkpoint.
        DivergedError: too many steps in a row had a loss or gradient that is not finite.
        UserError: the data is not what the run was trained on, its total batch cannot be had on these devices, nothing
            is left to train, or the evaluation failed, see `write_report`.
    """
    if run is None and trainer.is_global_zero:
        raise ValueError("the first process of a run needs a folder: Run.create makes one")
    if task.config.ema and isinstance(trainer.strategy, ShardedStrategy):
        raise UserError("--model.ema averages whole weights: take --trainer.strategy ddp, or leave it out")
    if resume is not None and resume.is_dir() and not isinstance(trainer.strategy, ShardedStrategy):
        raise UserError(f"{resume} is in shards: go on with --trainer.strategy fsdp")
    keep_total_batch(trainer, data)
    write_into(trainer, run, task.monitor(), of_the_task(task, run), wandb, save_every)
    if run is not None:
        _note_data(trainer, run, data)
    fit_or_interrupt(trainer, task, data, resume)
    with lost_peers_named(trainer):
        return _report(trainer, task, data, run, resume)


def _report(trainer: Trainer, task: Task, data: Any, run: Run | None, resume: Path | None) -> Outcome:
    """Of a training that came to its end; what `.unreported` says of it is there until it is complete."""
    path, is_finished = trainer.strategy.broadcast((str(run.path), run.is_finished()) if run else ("", False))
    run = Run(Path(path))
    if resume and not trainer.progress_bar_callback.started:  # type: ignore[union-attr]  # there was nothing left
        if is_finished:
            raise run.finished()
        if not isinstance(trainer.strategy, ShardedStrategy):
            task.load_state_dict(read_checkpoint(resume))  # those to be saved, as at the end of a training
    if trainer.is_global_zero:
        run.unreported.touch()
    outcome = write_report(trainer, task, data, run, again=resume is not None)
    if trainer.is_global_zero:
        run.unreported.unlink()
    return outcome


def _note_data(trainer: Trainer, run: Run, data: Any) -> None:
    """Of a new run at once, of one that goes on when other data has trained it."""
    goes_on = bool(run.data_files())
    before = run.fingerprint() if goes_on else None
    if before is not None:
        check_unchanged(run, data.fingerprint, data.name)
    if not trainer.is_global_zero:
        return
    data.setup("fit")  # looks at the images
    known = replace(data.fingerprint, values=data.input.seen)
    if not goes_on:
        known.write(run.new_data_file())
    elif known != before:
        trainer.callbacks.append(OnceTrained(lambda: known.write(run.new_data_file())))  # type: ignore[attr-defined]


def of_the_task(task: Task, run: Run | None) -> list[Callback]:
    """What the task's options ask for."""
    advice = (
        f"lower --model.lr (now {task.config.lr}), or train in --trainer.precision 32-true (with --resume, "
        "--allow-changed-config too)"
    )
    skipped = SkippedSteps(task.config.nonfinite_steps, run.last if run else None, advice)
    return [skipped, WeightAverage(task.config.ema)] if task.config.ema else [skipped]


def write_into(
    trainer: Trainer,
    run: Run | None,
    monitor: str,
    others: Sequence[Callback] = (),
    wandb: str | None = None,
    save_every: int = 0,
) -> None:
    """History and checkpoints go into the run's folder. Lightning tells their place to processes without one.

    `monitor` is the metric whose highest value is saved as the best checkpoint. `others` come behind what notes the
    place in the data, and before what saves it. `wandb` is a project of Weights & Biases. The last checkpoint is saved
    every `save_every` steps too.
    """
    shared: dict[str, Any] = {"dirpath": run.checkpoints if run else None, "enable_version_counter": False}
    if run is not None:
        trainer.callbacks.append(EpochTable(run.metrics))  # type: ignore[attr-defined]
    if run is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        trainer.loggers = make_loggers(run, wandb)
    callbacks: list[Callback] = [WholeSteps(), Position(), RunningMeans(), *others]
    if trainer.limit_val_batches != 0:
        callbacks.append(RunCheckpoint(filename="best", monitor=monitor, mode="max", **shared))
    trainer.callbacks += [*callbacks, LastCheckpoint(save_every, **shared), Stop()]  # type: ignore[attr-defined]


def fit_or_interrupt(trainer: Trainer, task: Task, data: Any, resume: Path | None) -> None:
    """`Trainer.fit`, which ends the process at Ctrl-C: a KeyboardInterrupt instead, for the caller to report."""
    try:
        with lost_peers_named(trainer):
            trainer.fit(task, datamodule=data, ckpt_path=resume)
    except SystemExit as error:
        raise KeyboardInterrupt from error
    except MisconfigurationException as error:  # a length that the run has gone beyond
        raise UserError(f"--trainer: {error}") from error
    except ValueError as error:
        if "does not match the world size" in str(error):  # that of who started the processes
            raise UserError(f"--trainer.devices, --trainer.num_nodes: {error}") from error
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"a batch norm of {task.config.name} sees one value a channel: raise --data.batch_size to 2 or more, or "
            "--data.size"
        ) from error
    if trainer.interrupted:
        raise KeyboardInterrupt


def ended_by_time(trainer: Trainer) -> str:
    """What is to be said of a training whose `max_time` was over before its other lengths; else nothing."""
    has_all = trainer.current_epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps
    if time_left(trainer) or has_all:
        return ""
    return f"--trainer.max_time ended the training after {trainer.global_step} steps"
