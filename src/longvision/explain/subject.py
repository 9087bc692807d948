"""What is explained: a run's model, or one of timm by its name."""

from typing import Any

import timm
import torch
from timm.data import resolve_data_config

from longvision.data.transforms.input_spec import INTERPOLATIONS, InputSpec
from longvision.inference.description import Description
from longvision.inference.device import find_device
from longvision.inference.predictor import Predictor
from longvision.models.backbone import check_exists, create_backbone
from longvision.types import Size


def named_model(name: str, weights: str | None = None, size: Size | None = None, device: Any = None) -> Predictor:
    """A classifier of timm, prepared for images as its configuration says.

    Args:
        name: its name in timm.
        weights: a file of them; without, they are random, always the same.
        size: of the images, pixels; None for the model's own.
        device: as `Predictor`'s.

    Raises:
        UserError: an unknown name, a size that the model cannot take, or weights of another model.
    """
    check_exists(name)
    cfg: Any = timm.get_pretrained_cfg(name)
    data = resolve_data_config(pretrained_cfg=cfg.to_dict())
    channels, *own_size = data["input_size"]
    known = data["interpolation"] in INTERPOLATIONS
    spec = InputSpec(
        size=size or tuple(own_size),
        channels=channels,
        mean=data["mean"],
        std=data["std"],
        crop=data["crop_pct"],
        interpolation=data["interpolation"] if known else "bicubic",
    )
    classes = cfg.num_classes or 1  # features alone are no classes, but a model without a head is a case of its own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_backbone(name, classes, channels, spec.size, weights or False)
    about = Description(name, [str(number) for number in range(classes)], spec, source=name)
    return Predictor(model.to(find_device(device)), description=about)
