"""Detection as a set: DETR (arXiv 2005.12872) on any timm backbone, COCO's average precision of boxes."""

from typing import Any

from timm.layers import FrozenBatchNormAct2d
from torchvision.ops import FrozenBatchNorm2d

from longvision.heads.detr import create_detr
from longvision.tasks.objects import ObjectTask
from longvision.tasks.optim import Schedule
from longvision.tasks.task import check_range


class DetrDetection(ObjectTask):
    """A finder of objects by queries, without anchors and without suppression. Learns from boxes alone.

    Args:
        name: of the backbone: any timm model; a map of stride 32, or of 16 where all its blocks have one stride.
        args: further arguments of the backbone.
        pretrained: weights of the backbone: a file's path, or true for those that timm knows. A ResNet needs them.
        queries: the most objects that are found in a picture.
        width: of encoder and decoder.
        layers: of the encoder, and of the decoder.
        dropout: in encoder and decoder.
        lr: learning rate at the end of the warm-up.
        backbone_lr: the backbone's, as a fraction of lr.
        weight_decay: AdamW's, for all but norms, biases, positions and decay rates.
        schedule: poly (a straight line) or cosine, from the warm-up to the end.
        warmup_steps: over which the learning rate rises.
        final_lr: at the end, as a fraction of lr.
        classes: their names; from the data.
        size: of the training images, (height, width); from the data.
        channels: of the images; from the data.
        masks: whether the data has masks, which are not used; from the data.
    """

    kind = "detr"

    def __init__(
        self,
        name: str = "vim_tiny_patch16_224",
        args: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        queries: int = 100,
        width: int = 256,
        layers: int = 6,
        dropout: float = 0.1,
        lr: float = 1e-4,
        backbone_lr: float = 0.1,
        weight_decay: float = 1e-4,
        schedule: Schedule = "poly",
        warmup_steps: int = 0,
        final_lr: float = 0.0,
        *,
        classes: list[str],
        size: tuple[int, int],
        channels: int = 3,
        masks: bool = False,
    ) -> None:
        super().__init__(name, args, classes, pretrained)
        self.set_optimiser(lr, schedule, weight_decay=weight_decay, layer_decay=None, final_lr=final_lr,
                           backbone_lr=backbone_lr)  # fmt: skip
        check_range(backbone_lr=(backbone_lr, 0, 10), warmup_steps=(warmup_steps, 0, 1e9))
        self.warmup_steps = warmup_steps
        self.head: dict[str, Any] = {"queries": queries, "width": width, "layers": layers, "dropout": dropout}
        self.model = create_detr(name, len(classes), channels, size, pretrained, self.args, **self.head)
        self.set_figures(masks=False)

    def describe(self) -> dict[str, Any]:
        return {"head": self.head}

    def on_fit_start(self) -> None:
        """Batch norms and a ResNet's first stage are frozen: without trained weights they would stay as they began."""
        norms = any(isinstance(module, FrozenBatchNorm2d | FrozenBatchNormAct2d) for module in self.model.modules())
        frozen = norms or not all(parameter.requires_grad for parameter in self.model.parameters())
        if frozen and not self.pretrained:
            raise ValueError(
                f"{self.name} has frozen weights in DETR, as published, and starts from random ones: "
                "give --model.pretrained FILE, or true for those that timm knows, or choose a Vim or a DeiT"
            )
