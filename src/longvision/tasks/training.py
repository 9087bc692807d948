"""One training run from the first step to the pictures: Lightning's Trainer is the loop."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import timm
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from longvision.data import ClassificationData
from longvision.models.checkpoints import save_weights
from longvision.tasks.classification import Classification
from longvision.tasks.history import EpochTable, read_history
from longvision.tasks.pictures import draw_confusion, draw_curves, draw_examples
from longvision.tasks.progress import RunProgress
from longvision.tasks.runs import Run
from longvision.version import __version__

EXAMPLES = 32  # images in predictions.png


@dataclass
class Outcome:
    """What the best epoch reached, on the test images or, where there are none, on the validation images."""

    split: str
    metrics: dict[str, float]

    def __str__(self) -> str:
        accuracy = f"{100 * self.metrics['accuracy']:.1f} %"
        if self.split == "test":
            return f"test accuracy {accuracy}"
        return f"validation accuracy {accuracy} (the best epoch's; there are no test images)"


def train(
    trainer: Trainer, task: Classification, data: ClassificationData, run: Run, resume: Path | None = None
) -> Outcome:
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


def make_trainer(options: dict[str, Any], run: Run | None = None) -> Trainer:
    """Lightning's Trainer with this project's callbacks, and quiet. Without a run it writes nothing.

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
        RunCheckpoint(filename="best", monitor="val/accuracy", mode="max", **shared),
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


def fit_or_interrupt(trainer: Trainer, task: Classification, data: ClassificationData, resume: Path | None) -> None:
    """`Trainer.fit`, which ends the process at Ctrl-C: a KeyboardInterrupt instead, for the caller to report."""
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resume)
    except SystemExit as error:
        raise KeyboardInterrupt from error
    if trainer.interrupted:
        raise KeyboardInterrupt


def evaluate(trainer: Trainer, task: Classification, data: ClassificationData, split: str) -> Outcome:
    """Loss, accuracy and, in the task, the confusion matrix on one split."""
    run = trainer.test if split == "test" else trainer.validate
    (figures,) = run(task, datamodule=data, verbose=False)
    return Outcome(split, {name.removeprefix(f"{split}/"): value for name, value in figures.items()})


def write_report(task: Classification, data: ClassificationData, run: Run, outcome: Outcome) -> None:
    """model.safetensors with all that prediction needs, its card, and the pictures."""
    metadata = {
        "task": "classification",
        "architecture": task.name,
        "args": task.args,
        "classes": data.classes,
        "preprocess": dataclasses.asdict(data.preprocess),
        "metrics": {f"{outcome.split}/{name}": value for name, value in outcome.metrics.items()},
    }
    save_weights(task.model, run.weights, metadata)
    run.card.write_text(_card(task, data, run, outcome))
    draw_curves(read_history(run.metrics), run.path / "curves.png", f"{task.name} on {data.name}")
    draw_confusion(task.confusion_KK.numpy(), data.classes, run.path / "confusion.png", str(outcome))
    examples = _examples(task, data, outcome.split)
    draw_examples(examples, run.path / "predictions.png", f"{outcome}: some images and what the model says")


@torch.inference_mode()
def _examples(task: Classification, data: ClassificationData, split: str) -> list[tuple[Any, str, str, float]]:
    """Images spread evenly over the split: (image, true class, predicted class, probability)."""
    images = data.images(split)  # type: ignore[arg-type]
    rows = np.unique(np.linspace(0, len(images) - 1, EXAMPLES).astype(int)).tolist()
    task.eval()
    examples = []
    for row in rows:
        try:
            image, tensor_CHW, label = data.sample(split, row)  # type: ignore[arg-type]
        except ValueError:  # a broken file, named when it was read before
            continue
        share, number = task(tensor_CHW[None].to(task.device)).float().softmax(1)[0].max(0)
        examples.append((image, data.classes[label], data.classes[int(number)], float(share)))
    return examples


def _card(task: Classification, data: ClassificationData, run: Run, outcome: Outcome) -> str:
    height, width = data.size
    parameters = sum(p.numel() for p in task.model.parameters())
    arguments = json.dumps({"num_classes": len(data.classes), "in_chans": data.channels, **task.args})
    source = f"num_classes={len(data.classes)}, input_size={(data.channels, height, width)}"
    figures = "\n".join(f"| {outcome.split} {name} | {value:.4f} |" for name, value in outcome.metrics.items())
    shown = ", ".join(data.classes[:20]) + (", …" if len(data.classes) > 20 else "")
    return f"""---
library_name: timm
pipeline_tag: image-classification
tags: [timm, longvision, image-classification]
---
# {task.name} on {data.name}

{len(data.classes)} classes: {shown}. Input {height}x{width}, {data.channels} channel(s). {parameters:,} parameters.
Trained from {"given weights" if task.pretrained else "scratch"}; the whole configuration is in \
`{run.configs()[-1].name}`. Made with longvision {__version__}, torch {torch.__version__}, timm {timm.__version__}, \
Lightning {lightning.__version__}.

| figure | value |
|---|---|
{figures}

The weights are those of the {"epoch that validated best" if run.best.is_file() else "last step"}.

## Use

```sh
longvision predict {run.path.name} IMAGE
```

```python
import longvision, timm

model = timm.create_model(
    "{task.name}", img_size=({height}, {width}), pretrained=True,
    pretrained_cfg_overlay=dict(file="{run.weights.name}", {source}), **{arguments},
).eval()
```

Images are normalised with mean {tuple(round(v, 4) for v in data.preprocess.mean)} and standard deviation \
{tuple(round(v, 4) for v in data.preprocess.std)}, after a centre crop of {data.preprocess.crop}.
"""
