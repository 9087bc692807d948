"""Segmentation models: images to a class for each pixel."""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torch import Tensor, nn

from longvision.heads.segmentation import create_segmenter
from longvision.inference.config import InferenceConfig
from longvision.inference.description import Description
from longvision.inference.results import MaskResult
from longvision.inference.task import Named, TaskPredictor
from longvision.inference.windows import probabilities


class SegmentationPredictor(TaskPredictor):
    """Of a model: images (B, C, h, w) -> logits (B, K, h, w)."""

    batch = 8  # windows
    if_too_large = "go over it in windows (--window 512), make it smaller, or cut it into tiles"

    def __init__(self, description: Description, inference: InferenceConfig | None = None) -> None:
        super().__init__(description)
        self.inference = description.inference if inference is None else inference

    def creator(self) -> Callable[..., nn.Module]:
        return create_segmenter

    def at_once(self, batch: int) -> int:
        return 1  # `batch` are windows here

    def predict(self, model: Any, images: list[Tensor], inputs: Sequence[Named], batch: int) -> list[MaskResult]:
        return [
            self._predict(model, image_CHW, *source, batch) for image_CHW, source in zip(images, inputs, strict=True)
        ]

    def _predict(self, model: Any, x_CHW: Tensor, name: str, image: Image.Image, batch: int) -> MaskResult:
        size = (image.height, image.width)
        shares_KHW = probabilities(model, x_CHW, len(self.classes), size, self.inference, batch)
        score_HW, mask_HW = shares_KHW.max(0)
        scores = {number: float(score_HW[mask_HW == number].mean()) for number in mask_HW.unique().tolist()}
        return MaskResult(name, image, self.classes, self.palette, mask_HW.byte().cpu().numpy(), scores)
