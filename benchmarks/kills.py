"""Trainings that are killed (SIGKILL) at random moments and go on: benchmarks/results/kills.csv, a row a kill.

Each is compared bit for bit with one that nobody disturbed: the loss of every step, also of those that come again, the
rows of metrics.csv, and the weights. In it is all that has a state: mixup, dropped paths, accumulation, an average of
the weights, a schedule, checkpoints within epochs.

Run: python benchmarks/kills.py [KILLS], which goes on behind the rows that are there.
"""

import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors import safe_open

TABLE = Path(__file__).parent / "results" / "kills.csv"
WORKERS = (0, 2, 4)
WORDS = """
    -c digits --trainer.max_epochs 3 --trainer.limit_train_batches 31 --trainer.accumulate_grad_batches 2
    --trainer.accelerator cpu --data.batch_size 16 --data.augment.mixup 0.5 --data.augment.cutmix 0.5 --model.ema 0.99
    --model.args.depth 2 --save-every 5
""".split()  # noqa: SIM905 the words as they are typed
# Writes the loss of each step to a file that outlives the process.
PROGRAM = """
import os, sys
from lightning.pytorch.callbacks import Callback
from longvision.engine import trainer
from longvision_cli.main import main

file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

class Steps(Callback):
    def on_train_batch_end(self, trainer, task, outputs, batch, index):
        os.write(file, f"{trainer.current_epoch} {index} {outputs['loss'].item().hex()}\\n".encode())

make_trainer = trainer.make_trainer
trainer.make_trainer = lambda options: make_trainer({**options, "callbacks": [Steps()]})
sys.exit(main(["train", *sys.argv[2:]]))
"""


class Training:
    """One run in a folder of its own, in as many processes as it takes."""

    def __init__(self, folder: Path, workers: int, words: list[str] = WORDS) -> None:
        self.folder, self.steps = folder, folder / "steps"
        self.words = [*words, "--data.workers", str(workers), "--runs", str(folder / "runs")]
        folder.mkdir(parents=True)

    @property
    def run(self) -> Path | None:
        """The run's folder, once it has a configuration."""
        return next((file.parent for file in self.folder.glob("runs/*/config.yaml")), None)

    def start(self) -> subprocess.Popen[bytes]:
        """Anew, or where it was left."""
        words = ["--resume", str(self.run)] if self.run else self.words
        command = [sys.executable, "-c", PROGRAM, str(self.steps), *words]
        return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def finish(self) -> None:
        self._wait(self.start())

    def _wait(self, process: "subprocess.Popen[bytes]") -> None:
        """Raises RuntimeError with what it said, if it failed by itself."""
        _, said = process.communicate()
        if process.returncode > 0 and b"is finished" not in said:  # it was killed when all was done
            raise RuntimeError(said.decode())

    def kill(self, seconds: float = 0.0, steps: int = 0) -> bool:
        """So long after the run has a folder and has made so many steps; -> whether it was not finished by then."""
        process = self.start()
        while (self.run is None or self.lines() < steps) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(seconds)
        alive = process.poll() is None
        if alive:
            os.killpg(process.pid, signal.SIGKILL)
        self._wait(process)
        return alive

    def losses(self) -> dict[str, set[str]]:
        """Of each step, by epoch and batch; more than one where it came again and was another."""
        found: dict[str, set[str]] = {}
        for line in self.steps.read_text().splitlines() if self.steps.exists() else []:
            step, _, loss = line.rpartition(" ")
            found.setdefault(step, set()).add(loss)
        return found

    def lines(self) -> int:
        return len(self.steps.read_text().splitlines()) if self.steps.exists() else 0

    def table(self) -> list[dict[str, str]]:
        """metrics.csv, without what the clock says."""
        with (self._finished() / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [{k: v for k, v in row.items() if k != "seconds" and not k.startswith("speed/")} for row in rows]

    def weights(self) -> dict[str, bytes]:
        with safe_open(self._finished() / "model.safetensors", "np") as file:
            return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118 not a dict

    def _finished(self) -> Path:
        assert self.run is not None
        return self.run

    def differences(self, other: "Training") -> list[str]:
        """What is not as in `other`, by name."""
        mine, its = self.losses(), other.losses()
        return [
            *(f"loss of {step}" for step in {**mine, **its} if mine.get(step) != its.get(step)),
            *(["metrics.csv"] if self.table() != other.table() else []),
            *(name for name, value in other.weights().items() if self.weights().get(name) != value),
        ]


def main(kills: int = 20) -> None:
    from longvision.benchmark.provenance import device_name, provenance
    from longvision.benchmark.rows import read_rows, write_rows

    rows = read_rows(TABLE)
    moments = random.Random(len(rows))
    with tempfile.TemporaryDirectory() as folder:
        whole = Training(Path(folder, "whole"), 0)
        began = time.monotonic()
        whole.finish()
        length = time.monotonic() - began
        while len(rows) < kills:
            workers, number = WORKERS[len(rows) % len(WORKERS)], len(rows) + 1
            killed = Training(Path(folder, f"{number}-{time.monotonic_ns()}"), workers)
            seconds = moments.uniform(0, length)
            if not killed.kill(seconds):
                continue
            done = killed.lines()
            killed.finish()
            differences = killed.differences(whole)
            rows.append({
                "kill": number,
                "workers": workers,
                "seconds": round(seconds, 2),
                "steps_before": done,
                "steps_again": killed.lines() - whole.lines(),
                "differences": "; ".join(differences),
                "device": device_name("cpu"),
                **provenance(),
            })  # fmt: skip
            write_rows(TABLE, rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
