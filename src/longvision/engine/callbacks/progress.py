"""What a person sees while a model trains: one bar over the whole run, or a line an epoch in a log."""

import math
import os
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer
from tqdm import tqdm

from longvision.engine.callbacks.throughput import MEMORY, RATE, Throughput, peak_memory


class RunProgress(ProgressBar):
    """Time left, loss, accuracy, images a second and memory. On a terminal a bar; elsewhere a line for each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm | None = None
        self.enabled = True
        self.started = 0.0  # not yet

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started, self.first_step = time.monotonic(), trainer.global_step
        if self.enabled and sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns:
            total = trainer.estimated_stepping_batches
            left = ", {remaining} left" if math.isfinite(total) else ""
            self.bar = tqdm(
                total=int(total) if math.isfinite(total) else None,
                initial=trainer.global_step,
                unit="step",
                dynamic_ncols=True,
                bar_format=f"{{desc}} {{percentage:3.0f}}% |{{bar}}| {{elapsed}} gone{left}{{postfix}}",
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.bar is None:
            return
        self.bar.set_description_str(_epoch(trainer), refresh=False)
        speed = next(one.rate for one in trainer.callbacks if isinstance(one, Throughput))  # type: ignore[attr-defined]
        memory = peak_memory(pl_module.device) or math.nan
        texts = [_metrics(trainer, "train/loss_step", pl_module), _speed(speed * trainer.world_size, memory / 1e9)]
        if math.isfinite(limit := time_left(trainer)):
            texts.append(f"at most {clock(limit)} left")
        self.bar.set_postfix_str(", ".join(filter(None, texts)), refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.bar is not None or not self.enabled:
            return
        done, total = trainer.global_step - self.first_step, trainer.estimated_stepping_batches - self.first_step
        gone = time.monotonic() - self.started
        left = min(max(0.0, gone * (total - done) / done), time_left(trainer)) if done else math.nan
        clocked = f"{clock(left)} left" if math.isfinite(left) else f"{clock(gone)} gone"
        speed = _speed(*(float(trainer.callback_metrics.get(name, math.nan)) for name in (RATE, MEMORY)))
        texts = [_epoch(trainer), _metrics(trainer, "train/loss", pl_module), speed, clocked]
        print("  ".join(filter(None, texts)), flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After training, which ended with no time left: it is minutes of silence on large images."""
        if self.started and self.enabled:
            images = len(trainer.datamodule.images("test"))  # type: ignore[attr-defined]
            best = any(
                getattr(callback, "best_model_score", None) is not None for callback in trainer.checkpoint_callbacks
            )
            print(f"testing the {'best' if best else 'last'} epoch on {images} images", flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def time_left(trainer: Trainer) -> float:
    """Seconds of --trainer.max_time, which counts over all sessions of a run; infinite without."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    left = [seconds for timer in timers if (seconds := timer.time_remaining("train")) is not None]
    return max(0.0, min(left, default=math.inf))


def _epoch(trainer: Trainer) -> str:
    last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
    return f"epoch {trainer.current_epoch + 1}{last}"


def _metrics(trainer: Trainer, loss: str, task: Any) -> str:
    """The loss, and the task's first metric on the validation images once there is one."""
    name, words = next(iter(task.metric_names.items()))
    metrics = trainer.callback_metrics | trainer.progress_bar_metrics
    texts = [f"loss {float(metrics[loss]):.3f}"] if loss in metrics else []
    if f"val/{name}" in metrics:
        texts.append(f"val {words} {percent(float(metrics[f'val/{name}']))}")
    elif f"train/{name}" in metrics:
        texts.append(f"{words} {100 * float(metrics[f'train/{name}']):.1f} %")
    return ", ".join(texts)


def _speed(images: float, gigabytes: float) -> str:
    """What is not known, NaN, is left out."""
    rate = f"{images:,.0f}" if images >= 10 else f"{images:.1f}"
    texts = [f"{rate} images/s"] * (not math.isnan(images)) + [f"{gigabytes:.1f} GB"] * (not math.isnan(gigabytes))
    return ", ".join(texts)


def percent(value: float) -> str:
    """A share as people read it; NaN is what nothing could be measured by, as AP without objects."""
    return "not measurable" if math.isnan(value) else f"{100 * value:.1f} %"


def clock(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
