"""AdamW with a warm-up, then a cosine, as DeiT and Vim are trained, or a line, as dense heads are."""

import math
from typing import Any, Literal

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from longvision.models.backbone import backbone_of

Schedule = Literal["cosine", "poly"]


def adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float | None,
    warmup_steps: float,
    steps: float,
    final_lr: float,
    schedule: Schedule = "cosine",
    backbone_lr: float = 1.0,
) -> dict[str, Any]:
    """Optimizer and schedule as Lightning wants them.

    Args:
        model: whose backbone's `no_weight_decay` and `group_matcher` timm reads.
        lr: learning rate at the end of the warm-up.
        weight_decay: for all but norms, biases, positions and what the backbone names.
        layer_decay: factor from each block to the one before it; None for one rate everywhere. A head on the backbone
            has the full rate.
        warmup_steps: over which the rate rises linearly.
        steps: in all; the schedule ends there.
        final_lr: at the end, as a fraction of `lr`.
        schedule: from the warm-up to the end. "cosine": half a cosine. "poly": a straight line, the polynomial of
            power 1 (mmsegmentation's "poly" as it is used with transformers).
        backbone_lr: factor on the backbone's rate, as DETR's 0.1.

    Raises:
        ValueError: layer-wise decay for a model whose layers timm cannot number.
    """
    optimizer = create_optimizer_v2(_groups(model, weight_decay, layer_decay, backbone_lr), "adamw", lr=lr)
    for group in optimizer.param_groups:  # timm leaves the factor of each layer to schedules of its own
        group["lr"] *= group.pop("lr_scale", 1.0)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        falling = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
        return final_lr + (1 - final_lr) * falling

    # A function of the step, and not a schedule with a state: a resumed run may have another length.
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


def _groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None, backbone_lr: float
) -> list[dict[str, Any]]:
    """Parameter groups: those of the backbone's blocks, then those of what stands on it, which has the full rate."""
    backbone: Any = backbone_of(model) or model
    named = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else set()
    if hasattr(backbone, "group_matcher"):
        groups = param_groups_layer_decay(
            backbone, weight_decay, no_weight_decay_list=named, layer_decay=layer_decay or 1.0
        )
    elif layer_decay is None:
        groups = param_groups_weight_decay(backbone, weight_decay, no_weight_decay_list=named)
    else:
        raise ValueError("--model.layer_decay: timm cannot number this backbone's layers: leave it out")
    # With a head on it, the backbone's last block is one layer below the top, as it is below a classifier's head.
    below = 1.0 if backbone is model else (layer_decay or 1.0)
    for group in groups:
        group["lr_scale"] = group.get("lr_scale", 1.0) * backbone_lr * below
    inside = {id(parameter) for parameter in backbone.parameters()}
    head = nn.ParameterList(p for p in model.parameters() if id(p) not in inside)
    return [*groups, *(param_groups_weight_decay(head, weight_decay) if len(head) else [])]
