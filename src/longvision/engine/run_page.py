"""report.html: a run on one page, for people. It needs nothing but itself."""

import math
import platform
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import lightning
import timm
import torch
from PIL import Image

from longvision.engine.callbacks.history import read_history
from longvision.engine.callbacks.progress import clock
from longvision.engine.callbacks.throughput import MEMORY, RATE
from longvision.engine.run import Run
from longvision.tasks.task import Task
from longvision.types import Split
from longvision.version import __version__
from longvision.viz import page
from longvision.viz.plots import line_chart

COUNTED = 50  # classes whose images are counted in a table
SPLIT_NAMES: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}


def write_page(task: Task, data: Any, run: Run, outcome: Any, path: Path) -> None:
    """Of a run that has ended; `outcome` is what its evaluation found."""
    history = read_history(run.metrics) if run.metrics.exists() else []
    sections = {
        "Result": _result(outcome),
        "Curves": _curves(task, data, history),
        **task.sections(data, outcome.split),
        "Examples": _examples(run),
        "Speed": _speed(task, history),
        "Data": _data(data),
        "Configuration": _configuration(run),
        "Versions": page.facts(_versions()),
    }
    title = f"{task.config.name} on {task.info.name}"
    path.write_text(page.page(title, run.path.name, sections), encoding="utf-8")


def _result(outcome: Any) -> str:
    if not outcome.metrics:
        return page.paragraphs(str(outcome))
    names = dict.fromkeys([*outcome.words, *sorted(outcome.metrics)])  # the one that chose the epoch first
    values = {
        outcome.words.get(name, name.replace("_", " ")): f"{value:.4f}" if name == "loss" else page.percent(value)
        for name, value in ((name, outcome.metrics[name]) for name in names)
    }
    images = SPLIT_NAMES[outcome.split]
    return page.tiles(values) + page.paragraphs(f"of the {outcome.epoch} epoch, on the {images} images")


def _curves(task: Task, data: Any, history: list[dict[str, float]]) -> str:
    name, words = next(iter(task.metric_names.items()))
    charts = []
    for metric, scale, label in (("loss", 1, "loss"), (name, 100, f"{words}, %")):
        lines = {
            said: [(row["epoch"], scale * row.get(f"{split}/{metric}", math.nan)) for row in history]
            for split, said in (("train", "training, augmented"), ("val", "validation"))
        }
        charts.append(line_chart(lines, label))
    mixes = any(getattr(getattr(data, "augment", None), name, 0) for name in ("mixup", "cutmix"))
    of_mixed = ", that of training of mixed images and labels" if mixes else ""
    same = page.paragraphs(f"the losses of training and validation are the same quantity{of_mixed}")
    compared = any("val/loss" in row for row in history)
    return f'<div class="charts">{"".join(charts)}</div>{same if compared else ""}' if history else ""


def _examples(run: Run) -> str:
    with suppress(OSError), Image.open(run.path / "predictions.png") as image:
        return page.wide_image(image, "some images and what the model says")
    return ""  # it was not drawn


def _speed(task: Task, history: list[dict[str, float]]) -> str:
    columns = {name: [row[name] for row in history if name in row] for name in ("seconds", RATE, MEMORY)}
    rows = {"parameters": f"{sum(p.numel() for p in task.model.parameters()):,}"}
    if columns["seconds"]:
        rows["training and validation"] = (
            f"{clock(sum(columns['seconds']))} for {len(history)} epoch{'s' * (len(history) > 1)}"
        )
    if columns[RATE]:
        rows["training images a second"] = f"{median(columns[RATE]):,.1f} (median of the epochs)"
    if columns[MEMORY]:
        rows["most memory of a process"] = f"{max(columns[MEMORY]):.2f} GB"
    return page.facts(rows)


def _data(data: Any) -> str:
    known, notes = data.fingerprint.summary, list(dict.fromkeys(data.source.notes))
    splits = known["splits"]
    rows = {
        "set": data.name,
        "images": ", ".join(f"{about['images']:,} {SPLIT_NAMES[split]}" for split, about in splits.items()),
        "classes": len(known["classes"]),
        "validation images": "drawn from the training images" if known["drawn"] else "the set's own",
        "input": f"{data.size[0]}x{data.size[1]} pixels, {data.channels} channel(s)",
        **{f"note {number}": note for number, note in enumerate(notes, 1)},
    }
    counts = {split: about["of"] for split, about in splits.items() if "of" in about}
    if not counts or len(known["classes"]) > COUNTED:
        return page.facts(rows)
    lines = [[name, *(of.get(name, 0) for of in counts.values())] for name in known["classes"]]
    counted = page.table(["class", *(SPLIT_NAMES[split] for split in counts)], lines)
    return f'<div class="beside">{page.facts(rows)}{counted}</div>'


def _configuration(run: Run) -> str:
    return "".join(page.details(file.name, file.read_text(encoding="utf-8")) for file in run.configs())


def _versions() -> dict[str, str]:
    """With the machine that they ran on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, threads: {torch.get_num_threads()}"
    return {
        "longvision": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "Lightning": lightning.__version__,
        "Python": platform.python_version(),
        "system": platform.platform(),
        "device": device,
    }
