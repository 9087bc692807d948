"""What a run leaves behind: weights first, then metrics, then drawings. Each survives the failure of the next."""

import dataclasses
import math
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from longvision.data.image_ids import write_image_ids
from longvision.engine.callbacks.history import read_history
from longvision.engine.callbacks.progress import percent
from longvision.engine.card import model_card
from longvision.engine.ranks import on_first_rank
from longvision.engine.run import Run
from longvision.engine.run_page import write_page
from longvision.engine.strategy import ShardedStrategy, in_one_piece
from longvision.errors import UserError
from longvision.files import written_beside
from longvision.models.weights.files import save_weights
from longvision.tasks.task import Task
from longvision.viz.charts import draw_curves

SPLITS = {"val": "validation", "test": "test"}


@dataclass
class Outcome:
    """What the best epoch reached, on the test images or, where there are none, on the validation images.

    Args:
        split: "test" or "val".
        metrics: by name; empty where nothing was evaluated.
        words: of those metrics that are printed.
        artifacts: the files that were drawn or written of it.
        failed: those that could not be.
        epoch: "best", or "last" where none is known to be it.
    """

    split: str
    metrics: dict[str, float] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    epoch: str = "best"

    def __str__(self) -> str:
        if not self.metrics:
            return f"not evaluated: there were no {SPLITS[self.split]} batches (--trainer.limit_{self.split}_batches)"
        metrics = [f"{words} {percent(self.metrics[name])}" for name, words in self.words.items()]
        remark = "" if self.split == "test" else f" (the {self.epoch} epoch's; there are no test images)"
        return f"{SPLITS[self.split]} {', '.join(metrics)}{remark}"


def evaluate(trainer: Trainer, task: Task, data: Any, split: str) -> Outcome:
    """Loss and metrics on one split; without any where there are no batches.

    Raises:
        KeyboardInterrupt: stopped by hand.
    """
    run = trainer.test if split == "test" else trainer.validate
    try:
        logged = next(iter(run(task, datamodule=data, verbose=False)), {})
    except SystemExit as error:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from error
    metrics = {name.removeprefix(f"{split}/"): value for name, value in logged.items()}
    return Outcome(split, metrics, {name: words for name, words in task.metric_names.items() if name in metrics})


def write_report(trainer: Trainer, task: Task, data: Any, run: Run, again: bool = False) -> Outcome:
    """Take the epoch that validated best, save and evaluate it, and draw its results. Every process of a run calls it.

    Of a run that went on, `again`, it takes the place of an earlier report.

    Raises:
        UserError, Exception: the evaluation failed. The weights, their card and what can be drawn are there.
        Exception: the first process could not write, which ends the others too (`on_first_rank`).
    """
    best = trainer.strategy.broadcast(trainer.is_global_zero and run.has_best)
    if not best and trainer.is_global_zero:
        _tell_why_not(trainer, task, run)
    evaluator = trainer
    if isinstance(trainer.strategy, ShardedStrategy):
        evaluator, task = in_one_piece(trainer, task, read_checkpoint(run.best if best else run.last))
    elif best:
        task.load_state_dict(read_checkpoint(run.best))
    on_first_rank(trainer.strategy, lambda: save_model(task, data, run, again))
    split = "test" if data.has_test else "val"
    try:
        outcome = evaluate(evaluator, task, data, split)
        outcome.epoch = "best" if best else "last"
    except Exception as error:
        # The others may have failed as well or be in the middle of it: nothing is said to them.
        if trainer.is_global_zero:
            draw_artifacts(task, data, run, Outcome(split))
        place = f"the model is saved in {run.weights}, it could not be evaluated"
        if isinstance(error, UserError):  # one sentence
            raise type(error)(f"{error}; {place}") from error
        error.add_note(place)
        raise
    on_first_rank(trainer.strategy, lambda: save_results(task, data, run, outcome))
    return outcome


def _tell_why_not(trainer: Trainer, task: Task, run: Run) -> None:
    """The best epoch is not taken; where training ended before it validated there is none, and no word."""
    reason = ""
    if run.best.exists():
        reason = f"{run.best} is cut short or damaged: the last epoch is taken in place of the best one"
    elif trainer.callback_metrics.get(task.monitor(), torch.zeros(())).isnan():
        reason = (
            f"{task.monitor()} was not measurable in any epoch (are there labels among the validation images?): "
            "no epoch is known to be the best, the last one is kept"
        )
    if reason:
        warnings.warn(reason, stacklevel=3)


def save_model(task: Task, data: Any, run: Run, overwrite: bool = False) -> None:
    """The weights and their card, before they are evaluated: what fails then does not take them along."""
    save_weights(task.model, run.weights, description(task, data), overwrite)
    if data.source.coco_ids:
        write_image_ids(run.path, data.source.coco_ids.images)
    write_card(task, data, run)


def save_results(task: Task, data: Any, run: Run, outcome: Outcome) -> None:
    """Metrics into the weights and their card, and the drawings."""
    if outcome.metrics:
        measured = {name: value for name, value in outcome.metrics.items() if not math.isnan(value)}
        add_metrics(task, data, run, {f"{outcome.split}/{name}": value for name, value in measured.items()})
    draw_artifacts(task, data, run, outcome)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint: a file, or a folder to which several devices wrote their shards."""
    if path.is_file():
        return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory() as folder:
        dcp_to_torch_save(path, Path(folder) / "whole.ckpt")
        return torch.load(Path(folder) / "whole.ckpt", map_location="cpu", weights_only=True)["model"]


def description(task: Task, data: Any) -> dict[str, Any]:
    """What prediction needs, beside the weights."""
    info = task.info
    ids = data.source.coco_ids
    return {
        "task": task.task_name,
        "architecture": task.config.name,
        "args": task.args,
        "classes": info.classes,
        "preprocess": dataclasses.asdict(data.input),
        **({"palette": info.palette} if info.palette else {}),
        **({"coco_ids": {"categories": ids.categories}} if ids else {}),
        **task.describe(),
    }


def write_card(task: Task, data: Any, run: Run, metrics: dict[str, float] | None = None) -> None:
    """README.md of the run's folder; without metrics, of a model that was not evaluated yet."""
    with written_beside(run.card, overwrite=True) as beside:
        beside.write_text(model_card(task, data, run, metrics or {}), encoding="utf-8")


def add_metrics(task: Task, data: Any, run: Run, metrics: dict[str, float]) -> None:
    """To the weights and their card, which are there without."""
    write_card(task, data, run, metrics)
    save_weights(task.model, run.weights, {**description(task, data), "metrics": metrics}, overwrite=True)


def draw_artifacts(task: Task, data: Any, run: Run, outcome: Outcome) -> None:
    """Each on its own: warns of those that cannot be made."""
    name, words = next(iter(task.metric_names.items()))
    title = f"{task.config.name} on {task.info.name}"
    artifacts = {
        "curves.png": lambda path: draw_curves(read_history(run.metrics), path, title, name, words),
        **task.artifacts(data, outcome.split, str(outcome)),
        "report.html": lambda path: write_page(task, data, run, outcome, path),  # the last: it shows the others
    }
    reasons: dict[str, list[str]] = {}
    for file, make in artifacts.items():
        try:
            make(run.path / file)
            outcome.artifacts.append(file)
        except Exception as error:
            reasons.setdefault(f"{type(error).__name__}: {error}", []).append(file)
    for reason, files in reasons.items():
        outcome.failed += files
        warnings.warn(f"the model is saved, but {', '.join(files)} could not be made: {reason}", stacklevel=2)
