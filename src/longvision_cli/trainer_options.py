"""The options of Lightning's Trainer that a command takes, written down: importing Lightning takes seconds, in which a
mistyped option would wait. A test holds them to the installed Lightning."""

import re
from dataclasses import dataclass
from typing import Literal

from longvision.errors import UserError

Precision = Literal[
    64, 32, 16, "transformer-engine", "transformer-engine-float16", "16-true", "16-mixed", "bf16-true", "bf16-mixed",
    "32-true", "64-true", "64", "32", "16", "bf16",
]  # fmt: skip
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
DEVICES = r"auto|-1|\d+(,\d*)*"  # a number, or those of some devices: "0,2", "1,"


@dataclass
class TrainerOptions:
    """Lightning's Trainer, see https://lightning.ai/docs/pytorch/stable/common/trainer.html.

    Args:
        accelerator: cpu, gpu, mps, tpu; auto takes what there is.
        strategy: how several devices work together, as ddp; auto decides.
        devices: how many, or which: [0, 2]; -1 for all.
        num_nodes: machines.
        precision: of the arithmetic; bf16-mixed on a GPU that can, 32-true elsewhere, when left out.
        fast_dev_run: one batch of everything, or so many, to see that it runs.
        max_epochs: -1 for no end.
        max_steps: -1 for no end.
        max_time: DD:HH:MM:SS, after which training ends.
        limit_train_batches: of an epoch: a number, or a share as 0.1.
        overfit_batches: train on so many batches only, or a share.
        val_check_interval: within an epoch: after so many batches, or a share.
        accumulate_grad_batches: batches whose gradients make one step.
        gradient_clip_val: longest gradient.
        deterministic: the same numbers each time, slower; warn where there is no such way.
        profiler: simple or advanced, to see what takes the time.
    """

    accelerator: str = "auto"
    strategy: str = "auto"
    devices: list[int] | int | str = "auto"
    num_nodes: int = 1
    precision: Precision | None = None
    fast_dev_run: int | bool = False
    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: dict[str, int] | str | None = None
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    limit_test_batches: int | float | None = None
    limit_predict_batches: int | float | None = None
    overfit_batches: int | float = 0.0
    val_check_interval: dict[str, int] | int | float | str | None = None
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | None = None
    log_every_n_steps: int | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: int | float | None = None
    gradient_clip_algorithm: str | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    profiler: str | None = None
    detect_anomaly: bool = False
    barebones: bool = False
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: int = 0
    enable_autolog_hparams: bool = True
    model_registry: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_epochs", "max_steps"):
            value = getattr(self, name)
            if value is not None and (value < -1 or value == 0):
                raise UserError(f"--trainer.{name} is {value}: expected 1 or more, or -1 for no end")
        if isinstance(self.max_time, str):
            parts = self.max_time.split(":")
            if len(parts) != 4 or not all(part.isdecimal() for part in parts):
                raise UserError(f"--trainer.max_time is {self.max_time!r}: expected DD:HH:MM:SS, as 00:08:30:00")
        if self.accelerator not in ACCELERATORS:
            raise UserError(f"--trainer.accelerator is {self.accelerator!r}: expected one of {', '.join(ACCELERATORS)}")
        is_unknown = isinstance(self.devices, str) and not re.fullmatch(DEVICES, self.devices)
        if is_unknown or self.devices in (0, "0", []):
            raise UserError(f"--trainer.devices is {self.devices!r}: expected 1 or more, or auto")
