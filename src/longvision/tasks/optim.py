"""AdamW or SGD with a warm-up, then a cosine, as DeiT and Vim are trained, or a line, as dense heads are."""

import math
from typing import Any

from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from longvision.errors import UserError
from longvision.models.backbone import backbone_of
from longvision.tasks.config import OptimConfig

DROP = 0.8  # of the training, in the schedule "step": epoch 400 of DETR's 500


def make_optimizer(model: nn.Module, config: OptimConfig, warmup: float, steps: float) -> dict[str, Any]:
    """Optimizer and schedule as Lightning wants them.

    A head on a backbone has the full rate; the backbone's is that times `config.backbone_lr`, where there is such, as
    DETR's 0.1. The schedule "cosine" is half a cosine, "poly" a straight line: the polynomial of power 1, as
    mmsegmentation uses its "poly" with transformers; "step" goes down to the final rate at once, as DETR's.

    Args:
        model: whose backbone's `no_weight_decay` and `group_matcher` timm reads.
        config: rates, decays and schedule.
        warmup: steps over which the rate rises linearly, those of its epochs included.
        steps: in all; the schedule ends there. Infinite: the rate stays.

    Raises:
        UserError: layer-wise decay for a model whose layers timm cannot number.
    """
    groups = _groups(model, config.weight_decay, config.layer_decay, getattr(config, "backbone_lr", 1.0))
    # timm's "sgd" is Nesterov's; its "momentum" is the plain one, 0.9, with which ViT was fine-tuned.
    name = "momentum" if config.optimizer == "sgd" else config.optimizer
    optimizer = create_optimizer_v2(groups, name, lr=config.lr)
    for group in optimizer.param_groups:  # timm leaves the factor of each layer to schedules of its own
        group["lr"] *= group.pop("lr_scale", 1.0)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        if config.schedule == "step":
            return 1.0 if progress < DROP else config.final_lr
        falling = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
        return config.final_lr + (1 - config.final_lr) * falling

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": Rates(optimizer, factor), "interval": "step"}}


class Rates(LambdaLR):
    """A function of the step and of the options, which has no state but the step: a run that goes on may have another
    length or learning rate."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """After the optimizer's, which brings the rates that it had."""
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})
        self._last_lr = [base * factor(self.last_epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas)]
        for group, base, rate in zip(self.optimizer.param_groups, self.base_lrs, self._last_lr, strict=True):
            group["initial_lr"], group["lr"] = base, rate


def _groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None, backbone_lr: float
) -> list[dict[str, Any]]:
    """Parameter groups: those of the backbone's blocks, then those of what stands on it, which has the full rate."""
    backbone: Any = backbone_of(model) or model
    named = set(backbone.no_weight_decay()) if hasattr(backbone, "no_weight_decay") else set()
    named |= {name for name, _ in backbone.named_parameters() if ".memory" in name}  # tokens too
    if hasattr(backbone, "group_matcher"):
        groups = param_groups_layer_decay(
            backbone, weight_decay, no_weight_decay_list=named, layer_decay=layer_decay or 1.0
        )
    elif layer_decay is None:
        groups = param_groups_weight_decay(backbone, weight_decay, no_weight_decay_list=named)
    else:
        raise UserError("--model.layer_decay: timm cannot number this backbone's layers: leave it out")
    # With a head on it, the backbone's last block is one layer below the top, as it is below a classifier's head.
    below = 1.0 if backbone is model else (layer_decay or 1.0)
    for group in groups:
        group["lr_scale"] = group.get("lr_scale", 1.0) * backbone_lr * below
    inside = {id(parameter) for parameter in backbone.parameters()}
    head = nn.ParameterList(p for p in model.parameters() if id(p) not in inside)
    return [*groups, *(param_groups_weight_decay(head, weight_decay) if len(head) else [])]
