"""Semantic segmentation: UPerNet or FPN on any timm backbone, cross-entropy, mean intersection over union."""

from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from longvision.engine.run import Run
from longvision.heads.segmentation import Head, create_segmenter
from longvision.inference.config import InferenceConfig
from longvision.inference.windows import probabilities
from longvision.metrics.segmentation import SegmentationFigures
from longvision.models.backbone import backbone_of
from longvision.tasks.dense import DenseTask
from longvision.tasks.optim import Schedule
from longvision.tasks.task import check_range
from longvision.types import IGNORE
from longvision.viz.overlays import draw_segmentation

Batch = tuple[list[Tensor], list[Tensor]]
AS_TRAINED = InferenceConfig()


class Segmentation(DenseTask):
    """A classifier of pixels. Batches are lists of images (C, H, W) and masks (H, W), 255 where nothing counts.

    Args:
        name: of the backbone: any timm model; one of a single stride, such as a Vim or a DeiT, gets a pyramid.
        head: upernet (arXiv 1807.10221) or fpn (arXiv 1901.02446).
        args: further arguments of the backbone, such as depth, or blocks of its pyramid.
        pretrained: weights to start from: a file's path, or true for those that timm knows.
        width: channels of the head.
        auxiliary: weight of the loss of a second, small head on the map of stride 16; 0 for none.
        lr: learning rate at the end of the warm-up.
        weight_decay: AdamW's, for all but norms, biases, positions and decay rates.
        layer_decay: factor on the learning rate from each block to the one before it; null for none.
        schedule: poly (a straight line) or cosine, from the warm-up to the end.
        warmup_steps: over which the learning rate rises.
        final_lr: at the end, as a fraction of lr.
        drop_path: stochastic depth at the last block.
        checkpoint: keep only each block's input for the backward pass: less memory, a third more time.
        asking: how pictures are shown to the trained model; changes no weight.
        classes: their names; from the data.
        size: of the training images, (height, width); from the data.
        channels: of the images; from the data.
    """

    kind = "segmentation"
    pipeline = "image-segmentation"
    figures: ClassVar = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "f1": "F1"}
    class_figures: ClassVar = {"class_iou": "IoU", "class_f1": "F1"}

    def __init__(
        self,
        name: str = "vim_tiny_patch16_224",
        head: Head = "upernet",
        args: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        width: int = 256,
        auxiliary: float = 0.4,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        layer_decay: float | None = None,
        schedule: Schedule = "poly",
        warmup_steps: int = 100,
        final_lr: float = 0.0,
        drop_path: float = 0.0,
        checkpoint: bool = False,
        asking: InferenceConfig = AS_TRAINED,
        *,
        classes: list[str],
        size: tuple[int, int],
        channels: int = 3,
    ) -> None:
        super().__init__(name, args, classes, pretrained)
        self.set_optimiser(lr, schedule, weight_decay=weight_decay, layer_decay=layer_decay, final_lr=final_lr)
        check_range(auxiliary=(auxiliary, 0, 10), drop_path=(drop_path, 0, 0.99), warmup_steps=(warmup_steps, 0, 1e9))
        self.warmup_steps, self.asking, self.auxiliary = warmup_steps, asking, auxiliary
        self.head: dict[str, Any] = {"head": head, "width": width, "auxiliary": auxiliary > 0}
        options = {**self.args, "drop_path_rate": drop_path} if drop_path else self.args
        self.model = create_segmenter(name, classes=len(classes), channels=channels, size=size, pretrained=pretrained,
                                      args=options, **self.head)  # fmt: skip
        if checkpoint:
            backbone_of(self.model).set_grad_checkpointing(True)  # type: ignore[union-attr, operator]
        self.val_figures, self.test_figures = SegmentationFigures(len(classes)), SegmentationFigures(len(classes))

    def describe(self) -> dict[str, Any]:
        return {"head": self.head, "asking": asdict(self.asking)}

    def on_fit_start(self) -> None:
        if self.head["head"] == "upernet" and self.trainer.datamodule.batch_size < 2:  # type: ignore[attr-defined]
            raise ValueError(
                "--data.batch_size 1: UPerNet's batch norms need 2 pictures at least, --model.head fpn does not"
            )

    def training_step(self, batch: Batch, index: int) -> Tensor:
        images_BCHW, masks_BHW = (torch.stack(part) for part in batch)
        output = self.model(images_BCHW)
        logits, *coarse = output if isinstance(output, tuple) else (output,)
        loss = pixel_loss(logits, masks_BHW)
        for more in coarse:
            loss = loss + self.auxiliary * pixel_loss(more, masks_BHW)
        self.check_finite(loss)
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=len(images_BCHW))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch, "val", self.val_figures)

    def test_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch, "test", self.test_figures)

    def _evaluate(self, batch: Batch, split: str, figures: SegmentationFigures) -> None:
        for image_CHW, mask_HW in zip(*batch, strict=True):
            shares_KHW = self.probabilities(image_CHW, mask_HW.shape)
            figures.update(shares_KHW.argmax(0), mask_HW)
            loss = pixel_loss(shares_KHW.clamp_min(1e-8).log()[None], mask_HW[None])
            self.log(f"{split}/loss", loss, batch_size=1, on_epoch=True, on_step=False)

    def probabilities(self, image_CHW: Tensor, size: tuple[int, ...]) -> Tensor:
        """(C, h, w) -> (K, H, W) float32 for a picture of that `size`, as `asking` says."""
        return probabilities(self.model, image_CHW, len(self.classes), (size[0], size[1]), self.asking)

    def panel(self, data: Any, split: str, row: int) -> Image.Image:
        picture, image_CHW, truth_HW = data.sample(split, row)
        found_HW = self.probabilities(image_CHW.to(self.device), truth_HW.shape).argmax(0)
        masks = {"prediction": found_HW.byte().cpu().numpy(), "truth": np.asarray(truth_HW, np.uint8)}
        return draw_segmentation(picture, masks, self.classes, data.info.palette)

    def usage(self, data: Any, run: Run) -> str:
        return f"""
```python
from longvision.inference import Predictor

predictor = Predictor("{run.path.name}")
mask = predictor("IMAGE").mask_HW  # class numbers
```
"""


def pixel_loss(logits_BKHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels that count, in float32; 0, with a gradient of 0, where none does."""
    total = F.cross_entropy(logits_BKHW.float(), masks_BHW.long(), ignore_index=IGNORE, reduction="sum")
    return total / (masks_BHW != IGNORE).sum().clamp_min(1)
