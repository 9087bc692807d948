"""How fast a run trains and how much memory it takes: logged with its metrics, an epoch each."""

import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

RATE, MEMORY = "speed/images_per_second", "speed/memory_gb"


class Throughput(Callback):
    """Training images a second over all devices, validation's time left out, and the most memory of any process."""

    def __init__(self) -> None:
        self.images = 0  # of this device, in this epoch
        self.seconds = 0.0  # of training in this epoch, before `since`
        self.since = 0.0

    @property
    def rate(self) -> float:
        """Images a second of this device in this epoch so far."""
        return self.images / max(1e-9, self.seconds + time.monotonic() - self.since)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.monotonic()  # a run that goes on within an epoch does not start one

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images, self.seconds, self.since = 0, 0.0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch[0])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += time.monotonic() - self.since

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.images:  # a run that went on behind an epoch's last batch
            return
        pl_module.log(RATE, self.rate, sync_dist=True, reduce_fx="sum")
        memory = peak_memory(pl_module.device)
        if memory is not None:
            pl_module.log(MEMORY, memory / 1e9, sync_dist=True, reduce_fx="max")


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process ever had: on a GPU those that torch handed out, else its resident set, without
    the worker processes. None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:  # not getrusage: on Linux that includes what the process was before it became this program
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None
