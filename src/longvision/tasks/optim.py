"""AdamW with a warm-up and a cosine, as DeiT and Vim are trained."""

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn


def adamw_cosine(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float | None,
    warmup_steps: float,
    steps: float,
    final_lr: float,
) -> dict[str, Any]:
    """Optimizer and schedule as Lightning wants them.

    Args:
        model: whose `no_weight_decay` and `group_matcher` timm reads.
        lr: learning rate at the end of the warm-up.
        weight_decay: for all but norms, biases, positions and what the model names.
        layer_decay: factor from each block to the one before it; None for one rate everywhere.
        warmup_steps: over which the rate rises linearly.
        steps: in all; the cosine ends there.
        final_lr: at the end, as a fraction of `lr`.
    """
    optimizer = create_optimizer_v2(model, "adamw", lr=lr, weight_decay=weight_decay, layer_decay=layer_decay)
    for group in optimizer.param_groups:  # timm leaves the factor of each layer to schedules of its own
        group["lr"] *= group.pop("lr_scale", 1.0)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        return final_lr + (1 - final_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    # A function of the step, and not a schedule with a state: a resumed run may have another length.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
