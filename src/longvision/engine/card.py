"""The card beside a run's weights: what they are, what they reached, how they are used."""

import re
from typing import Any

import lightning
import timm
import torch

from longvision.engine.run import Run
from longvision.tasks.task import Task
from longvision.text import printable
from longvision.version import __version__


def model_card(task: Task, data: Any, run: Run, metrics: dict[str, float]) -> str:
    """README.md of a run's folder, in the form that model hubs read.

    Args:
        metrics: by name and split, "test/accuracy"; empty where nothing was evaluated.
    """
    info = task.info
    parameters = sum(p.numel() for p in task.model.parameters())
    rows = [f"| {name.replace('/', ' ')} | {value:.4f} |" for name, value in metrics.items()]
    table = "\n".join(["| metric | value |", "|---|---|", *rows]) if rows else "It was not evaluated."
    several = ", of which an image may have any number" if info.multilabel else ""
    shown = ", ".join(map(_in_markdown, info.classes[:20])) + (", …" if len(info.classes) > 20 else "")
    return f"""---
library_name: timm
pipeline_tag: {task.pipeline}
tags: [timm, longvision, {task.pipeline}]
---
# {task.config.name} on {_in_markdown(info.name)}

{len(info.classes)} classes{several}: {shown}. Input {info.size[0]}x{info.size[1]}, {info.channels} channel(s). \
{parameters:,} parameters. Trained from {"given weights" if task.config.pretrained else "scratch"}; the whole \
configuration is in `{run.configs()[-1].name}`. Made with longvision {__version__}, torch {torch.__version__}, timm \
{timm.__version__}, Lightning {lightning.__version__}.

{table}

The weights are those of the {"epoch that validated best" if run.has_best else "last step"}.

## Use

```sh
longvision predict {run.path.name} IMAGE
```
{_timm_program(task, data, run) if _is_timm_s(task) else ""}
From Python, beside the run's folder:

```python
from longvision.inference import Predictor

Predictor("{run.path.name}")("IMAGE").image().show()
```
"""


def _in_markdown(name: str) -> str:
    """As it is: no formula, no tag, no link."""
    return re.sub(r"[\\`*<>\[\]$|]", r"\\\g<0>", printable(name))


def _is_timm_s(task: Task) -> bool:
    """Whether timm.create_model makes it: with a head of ours, or with memory, it does not."""
    return hasattr(task.model, "pretrained_cfg") and "head" not in task.describe()


def _timm_program(task: Task, data: Any, run: Run) -> str:
    """For a model that is timm's own, without a head of ours."""
    info, inputs = task.info, data.input
    (height, width), classes = info.size, len(info.classes)
    sigmoid = "The probability of each class is the sigmoid of its output. " if info.multilabel else ""
    arguments = {"num_classes": classes, "in_chans": info.channels, **task.args}
    return f"""
The weights load into timm:

```python
import longvision, timm

model = timm.create_model(
    "{task.config.name}", img_size=({height}, {width}), pretrained=True, **{arguments!r},
    pretrained_cfg_overlay=dict(
        file="{run.weights.name}", num_classes={classes}, input_size={(info.channels, height, width)}
    ),
).eval()
```

{sigmoid}Images are normalised with mean {tuple(round(v, 4) for v in inputs.mean)} and standard deviation \
{tuple(round(v, 4) for v in inputs.std)}, after a centre crop of {inputs.crop}.
"""
