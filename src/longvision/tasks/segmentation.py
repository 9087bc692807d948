"""Semantic segmentation: UPerNet or FPN on any timm backbone, cross-entropy, mean intersection over union."""

from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from longvision.errors import UserError
from longvision.heads.segmentation import create_segmenter
from longvision.inference.windows import probabilities
from longvision.metrics.segmentation import SegmentationMetrics
from longvision.tasks.config import SegmentationConfig
from longvision.tasks.dense import DenseTask
from longvision.types import IGNORE, DataInfo, Size
from longvision.viz.overlays import draw_segmentation

Batch = tuple[list[Tensor], list[Tensor]]
METRICS = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "f1": "F1"}


class Segmentation(DenseTask):
    """A classifier of pixels. Batches are lists of images (C, H, W) and masks (H, W), 255 where nothing counts."""

    task_name = "segmentation"
    pipeline = "image-segmentation"
    metric_names = METRICS
    class_metric_names: ClassVar = {"class_iou": "IoU", "class_f1": "F1"}
    config: SegmentationConfig
    create = staticmethod(create_segmenter)

    def __init__(self, config: SegmentationConfig, info: DataInfo) -> None:
        super().__init__(config, info)
        self.val_metrics, self.test_metrics = (SegmentationMetrics(len(info.classes)) for _ in range(2))

    @property
    def head(self) -> dict[str, Any]:
        return {"head": self.config.head, "width": self.config.width, "auxiliary": self.config.auxiliary > 0}

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "inference": asdict(self.config.inference)}

    def check_fit(self, data: Any) -> None:
        if data is not None and data.batch_size < 2:
            self._refuse_single_images("--data.batch_size 1")

    def on_fit_start(self) -> None:
        super().on_fit_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and data.order().share() < 2:
            self._refuse_single_images("a single training image a device")

    def _refuse_single_images(self, what: str) -> None:
        if self.config.head == "upernet":
            raise UserError(f"{what}: UPerNet's batch norms need 2 images at least, --model.head fpn does not")

    def training_step(self, batch: Batch, index: int) -> Tensor:
        images_BCHW, masks_BHW = (torch.stack(part) for part in batch)
        output = self.model(images_BCHW)
        logits_BKHW, *auxiliary = output if isinstance(output, tuple) else (output,)
        main = pixel_loss(logits_BKHW, masks_BHW)
        loss = main + sum(self.config.auxiliary * pixel_loss(other, masks_BHW) for other in auxiliary)
        self.log_loss("train", main, counted(masks_BHW))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch, "test", self.test_metrics)

    def _evaluate(self, batch: Batch, split: str, metrics: SegmentationMetrics) -> None:
        for image_CHW, mask_HW in zip(*batch, strict=True):
            shares_KHW = self.probabilities(image_CHW, (mask_HW.shape[0], mask_HW.shape[1]))
            metrics.update(shares_KHW.argmax(0), mask_HW)
            loss = pixel_loss(shares_KHW.clamp_min(1e-8).log()[None], mask_HW[None])
            self.log_loss(split, loss, counted(mask_HW))

    def probabilities(self, image_CHW: Tensor, size: Size) -> Tensor:
        """(C, h, w) -> (K, H, W) float32 for an image whose original has that `size`, as `config.inference` says."""
        return probabilities(self.model, image_CHW, len(self.info.classes), size, self.config.inference)

    def panel(self, data: Any, split: str, row: int) -> Image.Image:
        image, image_CHW, truth_HW = data.sample(split, row)
        found_HW = self.probabilities(image_CHW.to(self.device), truth_HW.shape).argmax(0)
        masks = {"prediction": found_HW.byte().cpu().numpy(), "truth": np.asarray(truth_HW, np.uint8)}
        return draw_segmentation(image, masks, self.info.classes, self.info.palette or [])


def counted(masks: Tensor) -> Tensor:
    """How many pixels are not ignored."""
    return (masks != IGNORE).sum()


def pixel_loss(logits_BKHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels that count, in float32; 0, with a gradient of 0, where none does."""
    total = F.cross_entropy(logits_BKHW.float(), masks_BHW.long(), ignore_index=IGNORE, reduction="sum")
    return total / counted(masks_BHW).clamp_min(1)
