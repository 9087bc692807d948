"""What the authors of a model state of their weights, kept in the notes of timm's configuration."""

from typing import Any

TOP_1 = "ImageNet-1k top-1: "


def top_1(percent: float | None) -> tuple[str, ...] | None:
    """For a configuration's `notes`: the accuracy that the authors state; None for none."""
    return None if percent is None else (f"{TOP_1}{percent}",)


def published_top_1(cfg: Any) -> float | None:
    """Percent, as the authors state it; None where the configuration does not say it."""
    found = [float(note.removeprefix(TOP_1)) for note in cfg.notes or () if note.startswith(TOP_1)]
    return found[0] if found else None


def licence(cfg: Any) -> str:
    """Of the weights; "none stated" where there are some and nobody says on which terms, "-" where there are none."""
    there = cfg.has_weights or published_top_1(cfg) is not None
    return cfg.license or ("none stated" if there else "-")
