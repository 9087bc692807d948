"""Detection and instance segmentation: Cascade or Mask R-CNN on any timm backbone, COCO's average precision."""

from typing import Any

from longvision.heads.detection import Head, create_detector
from longvision.models.backbone import backbone_of
from longvision.tasks.objects import ObjectTask
from longvision.tasks.optim import Schedule
from longvision.tasks.task import check_range


class Detection(ObjectTask):
    """A finder of objects in two steps: regions, then what is in each; with masks where the data has them.

    Args:
        name: of the backbone: any timm model; one of a single stride, such as a Vim or a DeiT, gets ViTDet's pyramid.
        head: cascade (Cascade R-CNN, arXiv 1712.00726) or rcnn (Faster or Mask R-CNN, arXiv 1703.06870).
        args: further arguments of the backbone.
        pretrained: weights to start from: a file's path, or true for those that timm knows.
        width: channels of the maps and heads; ViTDet's 256 asks for a GPU.
        lr: learning rate at the end of the warm-up.
        weight_decay: AdamW's, for all but norms, biases, positions and decay rates.
        layer_decay: factor on the learning rate from each block to the one before it; null for none.
        schedule: poly (a straight line) or cosine, from the warm-up to the end.
        warmup_steps: over which the learning rate rises.
        final_lr: at the end, as a fraction of lr.
        drop_path: stochastic depth at the last block.
        checkpoint: keep only each block's input for the backward pass: less memory, a third more time.
        classes: their names; from the data.
        size: of the training images, (height, width); from the data.
        channels: of the images; from the data.
        masks: whether the data has masks; from the data.
    """

    kind = "detection"

    def __init__(
        self,
        name: str = "vim_tiny_patch16_224",
        head: Head = "cascade",
        args: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        width: int = 256,
        lr: float = 1e-4,
        weight_decay: float = 0.1,
        layer_decay: float | None = None,
        schedule: Schedule = "poly",
        warmup_steps: int = 250,
        final_lr: float = 0.0,
        drop_path: float = 0.0,
        checkpoint: bool = False,
        *,
        classes: list[str],
        size: tuple[int, int],
        channels: int = 3,
        masks: bool = False,
    ) -> None:
        super().__init__(name, args, classes, pretrained)
        self.set_optimiser(lr, schedule, weight_decay=weight_decay, layer_decay=layer_decay, final_lr=final_lr)
        check_range(drop_path=(drop_path, 0, 0.99), warmup_steps=(warmup_steps, 0, 1e9))
        self.warmup_steps = warmup_steps
        self.head: dict[str, Any] = {"head": head, "width": width, "masks": masks}
        options = {**self.args, "drop_path_rate": drop_path} if drop_path else self.args
        self.model = create_detector(
            name, classes=len(classes), channels=channels, size=size, pretrained=pretrained, args=options, **self.head
        )
        if checkpoint:
            backbone_of(self.model).set_grad_checkpointing(True)  # type: ignore[union-attr, operator]
        self.set_figures(masks)

    def describe(self) -> dict[str, Any]:
        return {"head": self.head}
