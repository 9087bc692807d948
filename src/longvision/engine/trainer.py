"""One training run from the first step to the pictures: Lightning's Trainer is the loop."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from longvision.engine.card import model_card
from longvision.engine.history import EpochTable, read_history
from longvision.engine.progress import RunProgress
from longvision.engine.run import Run
from longvision.models.weights.files import save_weights
from longvision.tasks.task import Task
from longvision.viz.charts import draw_curves


@dataclass
class Outcome:
    """What the best epoch reached, on the test images or, where there are none, on the validation images."""

    split: str
    metrics: dict[str, float]
    words: dict[str, str]  # for those figures that are printed

    def __str__(self) -> str:
        split = "test" if self.split == "test" else "validation"
        figures = [f"{words} {100 * self.metrics[name]:.1f} %" for name, words in self.words.items()]
        remark = "" if self.split == "test" else " (the best epoch's; there are no test images)"
        return f"{split} {', '.join(figures)}{remark}"


def train(trainer: Trainer, task: Task, data: Any, run: Run, resume: Path | None = None) -> Outcome:
    """Fit, take the epoch that validated best, evaluate it, and write everything into the run's folder.

    Args:
        trainer: from `make_trainer`, for this run.
        task: the model with its loss.
        data: its images.
        run: an open run folder.
        resume: a checkpoint to go on from.

    Raises:
        KeyboardInterrupt: stopped by hand; the state is in the run's last checkpoint.
    """
    fit_or_interrupt(trainer, task, data, resume)
    if run.best.is_file():  # there is none where training ended before it validated
        state = torch.load(run.best, map_location="cpu", weights_only=True)["state_dict"]
        task.load_state_dict(state)
    outcome = evaluate(trainer, task, data, "test" if data.has_test else "val")
    if trainer.is_global_zero:
        write_report(task, data, run, outcome)
    return outcome


class RunCheckpoint(ModelCheckpoint):
    """In a run's folder, which may have been moved between two sessions of the run."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        here = Path(str(self.dirpath))
        paths = {
            key: str(here / Path(value).name) for key, value in state_dict.items() if key.endswith("path") and value
        }
        best = {str(here / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "dirpath": self.dirpath, "best_k_models": best})


class LastCheckpoint(RunCheckpoint):
    """Saves what an interruption leaves too; a model that diverged does not replace the last good one."""

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if not isinstance(exception, ValueError):
            super().on_exception(trainer, pl_module, exception)


def make_trainer(options: dict[str, Any], run: Run | None = None, monitor: str = "val/accuracy") -> Trainer:
    """Lightning's Trainer with this project's callbacks, and quiet. Without a run it writes nothing.

    `monitor` is the figure whose highest value is kept as the best checkpoint.

    Where no precision is asked for it is bfloat16 autocast on a CUDA GPU, float32 elsewhere.

    Raises:
        ValueError: options that Lightning refuses.
    """
    if 0 in (options.get("max_epochs"), options.get("max_steps")):
        raise ValueError("--trainer.max_epochs and --trainer.max_steps must not be 0: there would be nothing to train")
    options = {**options, "precision": options.get("precision") or _precision(options.get("accelerator", "auto"))}
    callbacks: list[Callback] = [*(options.pop("callbacks", None) or []), RunProgress()]
    if run is None:
        return _trainer(**options, callbacks=callbacks, logger=False, enable_checkpointing=False)
    shared: dict[str, Any] = {"dirpath": run.checkpoints, "enable_version_counter": False}
    callbacks += [
        EpochTable(run.metrics),
        RunCheckpoint(filename="best", monitor=monitor, mode="max", **shared),
        LastCheckpoint(filename="last", save_on_exception=True, **shared),
    ]
    logger = TensorBoardLogger(run.path, name="tensorboard", version="", default_hp_metric=False)
    return _trainer(**options, callbacks=callbacks, logger=logger)


def _trainer(**options: Any) -> Trainer:
    try:
        return Trainer(**options, enable_model_summary=False)
    except (MisconfigurationException, TypeError) as error:
        raise ValueError(f"--trainer: {error}") from error


def _precision(accelerator: str) -> str:
    """bf16 on a CUDA GPU that computes in it natively; float16 is never chosen for somebody."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def fit_or_interrupt(trainer: Trainer, task: Task, data: Any, resume: Path | None) -> None:
    """`Trainer.fit`, which ends the process at Ctrl-C: a KeyboardInterrupt instead, for the caller to report."""
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resume)
    except SystemExit as error:
        raise KeyboardInterrupt from error
    if trainer.interrupted:
        raise KeyboardInterrupt


def evaluate(trainer: Trainer, task: Task, data: Any, split: str) -> Outcome:
    """Loss and figures on one split."""
    run = trainer.test if split == "test" else trainer.validate
    (logged,) = run(task, datamodule=data, verbose=False)
    metrics = {name.removeprefix(f"{split}/"): value for name, value in logged.items()}
    return Outcome(split, metrics, {name: words for name, words in task.figures.items() if name in metrics})


def write_report(task: Task, data: Any, run: Run, outcome: Outcome) -> None:
    """model.safetensors with all that prediction needs, its card, and the pictures."""
    metadata = {
        "task": task.kind,
        "architecture": task.name,
        "args": task.args,
        "classes": data.classes,
        "preprocess": dataclasses.asdict(data.input),
        "metrics": {f"{outcome.split}/{name}": value for name, value in outcome.metrics.items()},
        **({"palette": data.info.palette} if data.info.palette else {}),
        **task.describe(),
    }
    save_weights(task.model, run.weights, metadata)
    run.card.write_text(model_card(task, data, run, outcome.split, outcome.metrics))
    figure = next(iter(task.figures.items()))
    draw_curves(read_history(run.metrics), run.path / "curves.png", f"{task.name} on {data.name}", *figure)
    task.draw(data, outcome.split, run.path, str(outcome))
