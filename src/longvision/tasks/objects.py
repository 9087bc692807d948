"""What tasks share that find objects: losses summed, COCO's average precision, pictures with boxes and masks."""

from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from longvision.engine.run import Run
from longvision.heads.extra import dense_library
from longvision.tasks.dense import DenseTask
from longvision.types import Detections, Size, Target
from longvision.viz.overlays import draw_objects

Batch = tuple[list[Tensor], list[Target]]
WORDS = {"box_ap": "box AP", "box_ap50": "box AP50", "mask_ap": "mask AP", "mask_ap50": "mask AP50"}


class ObjectTask(DenseTask):
    """A finder of objects. Batches are lists of images (C, H, W) and of targets, see `types.Target`.

    `self.model` returns named losses for images and targets, and has `detect(images, sizes)`.
    """

    pipeline = "object-detection"
    figures: ClassVar = WORDS
    class_figures: ClassVar = {"class_box_ap": "box AP", "class_mask_ap": "mask AP"}

    def set_figures(self, masks: bool) -> None:
        """COCO's figures, of boxes and, with `masks`, of masks. Raises ValueError where their library is missing."""
        dense_library("faster_coco_eval")
        from longvision.metrics.average_precision import AveragePrecision

        self.val_figures, self.test_figures = (AveragePrecision(len(self.classes), masks) for _ in range(2))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        images, targets = batch
        losses: dict[str, Tensor] = self.model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        self.check_finite(loss)
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=len(images))
        parts = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(parts, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch, self.val_figures)

    def test_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch, self.test_figures)

    def _evaluate(self, batch: Batch, figures: Any) -> None:
        images, targets = batch
        figures.update(self.detect(images, [target.size for target in targets]), targets)

    def detect(self, images: list[Tensor], sizes: list[Size]) -> list[Detections]:
        """Images as a model sees them, and the pictures' own sizes -> what is in the pictures, in their pixels."""
        return self.model.detect(images, sizes)  # type: ignore[operator]

    def panel(self, data: Any, split: str, row: int) -> Image.Image:
        picture, image_CHW, truth = data.sample(split, row)
        (found,) = self.detect([image_CHW.to(self.device)], [truth.size])
        return draw_objects(picture, {"prediction": found, "truth": truth}, self.classes, data.info.palette)

    def usage(self, data: Any, run: Run) -> str:
        return f"""
```python
from longvision.inference import Predictor

predictor = Predictor("{run.path.name}")
found = predictor("IMAGE").detections  # boxes (N, 4) xyxy in pixels, labels, scores, masks where there are any
```
"""
