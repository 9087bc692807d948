"""What the authors of a model state of their weights, kept in timm's configuration."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

TOP_1 = "ImageNet-1k top-1: "


def imagenet(accuracy: float | None = None, **others: Any) -> dict[str, Any]:
    """timm's configuration of a model for ImageNet-1k at 224 pixels: top-1 in percent as the authors state it, None for
    none, and what differs from the usual."""
    return {
        "input_size": (3, 224, 224),
        "num_classes": 1000,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "notes": None if accuracy is None else (f"{TOP_1}{accuracy}",),
        **others,
    }


def published_top_1(cfg: Any) -> float | None:
    """Percent, as the authors state it; None where the configuration does not say it."""
    found = [float(note.removeprefix(TOP_1)) for note in cfg.notes or () if note.startswith(TOP_1)]
    return found[0] if found else None


def licence(cfg: Any) -> str:
    """Of the weights; "none stated" where there are some and nobody says on which terms, "-" where there are none."""
    if not cfg.has_weights and published_top_1(cfg) is None:
        return "-"
    return cfg.license or "none stated"
