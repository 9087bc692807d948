"""Small models of every task with random weights, written to a file as a run writes them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from longvision.data.io.colours import spread_colours
from longvision.inference.config import InferenceConfig
from longvision.models.backbone import create_backbone
from longvision.models.weights.files import save_weights

CLASSES = [f"class {n}" for n in range(7)]
PALETTE = spread_colours(len(CLASSES))
ARGS = {"depth": 2, "embed_dim": 32}
NAME = "vim_nano_patch4_32"
DENSE_ARGS: dict[str, Any] = {"depth": 4, "embed_dim": 32}
DENSE_NAME = "vim_tiny_patch16_224"
HEADS: dict[str, dict[str, Any]] = {
    "segmentation": {"head": "fpn", "width": 64, "auxiliary": False},
    "detection": {"head": "rcnn", "width": 16, "masks": True},
    "detr": {"queries": 5, "width": 16, "layers": 1, "dropout": 0.1},
}


def write_model(task: str, path: Path, /, **changes: Any) -> nn.Module:
    """A model whose description and weights are in `path`, in evaluation mode; `changes` of what is written."""
    torch.manual_seed(0)
    metadata: dict[str, Any] = {"task": task, "classes": CLASSES, "metrics": {"test/accuracy": 0.5}}
    if task == "classification":
        size = (16, 24)
        model = create_backbone(NAME, len(CLASSES), 1, size, args=ARGS)
        preprocess = {"size": size, "channels": 1, "crop": 0.9, "mean": [0.4], "std": [0.2]}
        metadata |= {"architecture": NAME, "args": ARGS, "preprocess": preprocess}
    else:
        size = (64, 64)
        model = _dense(task)
        preprocess = {"size": size, "channels": 3, "resize": "none"}
        metadata |= {"architecture": DENSE_NAME, "args": DENSE_ARGS, "preprocess": preprocess}
        metadata |= {"head": HEADS[task], "palette": PALETTE}
        if task == "segmentation":
            metadata["inference"] = asdict(InferenceConfig())
    save_weights(model, path, {**metadata, **changes})
    return model.eval()


def _dense(task: str) -> nn.Module:
    options: dict[str, Any] = {"classes": len(CLASSES), "channels": 3, "size": (64, 64), "args": DENSE_ARGS}
    if task == "segmentation":
        from longvision.heads.segmentation import create_segmenter

        return create_segmenter(DENSE_NAME, **options, **HEADS[task])
    if task == "detection":
        from longvision.heads.detection import create_detector

        return create_detector(DENSE_NAME, **options, **HEADS[task])
    from longvision.heads.detr import create_detr

    return create_detr(DENSE_NAME, **options, **HEADS[task])
