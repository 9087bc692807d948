"""metrics.csv: one row an epoch, which pandas and a spreadsheet read as it is."""

import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from longvision.files import written_beside


class EpochTable(Callback):
    """Appends a row to `path` when an epoch and its validation are over; a resumed run goes on in the same file, and
    drops the rows of epochs that come again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()  # a run that goes on within an epoch does not start one
        if trainer.is_global_zero and self.path.exists():
            header, rows = _read(self.path)
            past = [row for row in rows if int(row["epoch"]) <= trainer.current_epoch]
            if past != rows:
                self._write(header, past)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning validates before this hook: both halves of the row are there.
        if not trainer.is_global_zero:
            return
        row: dict[str, float | int | str] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row["lr"] = trainer.optimizers[0].param_groups[-1]["lr"]
        row |= {
            name: f"{float(value):.6g}"
            for name, value in sorted(trainer.callback_metrics.items())
            if name.startswith(("train/", "val/", "speed/")) and not name.endswith("_step")
        }
        row["seconds"] = f"{time.monotonic() - self.started:.2f}"
        self._append(row)

    def _append(self, row: dict[str, float | int | str]) -> None:
        """An epoch without validation has fewer columns: the table takes those of all epochs."""
        header, rows = _read(self.path) if self.path.exists() else ([], [])
        self._write(list(dict.fromkeys([*header, *row])), [*rows, row])

    def _write(self, columns: list[str], rows: Sequence[Mapping[str, float | int | str]]) -> None:
        with (
            written_beside(self.path, overwrite=True, durable=True) as beside,
            beside.open("w", newline="", encoding="utf-8") as file,
        ):
            table = csv.DictWriter(file, columns, restval="")
            table.writeheader()
            table.writerows(rows)


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        return list(table.fieldnames or []), list(table)


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, as numbers; an epoch that was run twice counts as it was run last."""
    rows = [{name: float(value) for name, value in row.items() if value} for row in _read(path)[1]]
    return list({row["epoch"]: row for row in rows}.values())
