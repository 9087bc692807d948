"""The card beside a run's weights: what they are, what they reached, how they are used."""

from typing import Any

import lightning
import timm
import torch

from longvision.engine.run import Run
from longvision.tasks.task import Task
from longvision.version import __version__


def model_card(task: Task, data: Any, run: Run, split: str, metrics: dict[str, float]) -> str:
    """README.md of a run's folder, in the form that model hubs read."""
    height, width = data.size
    parameters = sum(p.numel() for p in task.model.parameters())
    figures = "\n".join(f"| {split} {name} | {value:.4f} |" for name, value in metrics.items())
    shown = ", ".join(data.classes[:20]) + (", …" if len(data.classes) > 20 else "")
    return f"""---
library_name: timm
pipeline_tag: {task.pipeline}
tags: [timm, longvision, {task.pipeline}]
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
{task.usage(data, run)}"""
