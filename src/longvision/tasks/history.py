"""metrics.csv: one row an epoch, which pandas and a spreadsheet read as it is."""

import csv
import time
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class EpochTable(Callback):
    """Appends a row to `path` when an epoch and its validation are over; a resumed run goes on in the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning validates before this hook: both halves of the row are there.
        if not trainer.is_global_zero:
            return
        row: dict[str, float | int | str] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row["lr"] = trainer.optimizers[0].param_groups[-1]["lr"]
        row |= {
            name.removesuffix("_epoch"): f"{float(value):.6g}"
            for name, value in sorted(trainer.callback_metrics.items())
            if name.startswith(("train/", "val/"))
            and not name.endswith("_step")
            and f"{name}_epoch" not in trainer.callback_metrics
        }
        row["seconds"] = f"{time.monotonic() - self.started:.2f}"
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            table = csv.DictWriter(file, list(row))
            if is_new:
                table.writeheader()
            table.writerow(row)


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, as numbers; an epoch that was run twice counts as it was run last."""
    with path.open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    return list({row["epoch"]: row for row in rows}.values())
