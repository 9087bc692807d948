"""Detection as a set: DETR (arXiv 2005.12872) on any timm backbone, COCO's average precision of boxes."""

from typing import Any

from timm.layers import FrozenBatchNormAct2d
from torchvision.ops import FrozenBatchNorm2d

from longvision.errors import UserError
from longvision.heads.detr import create_detr
from longvision.tasks.config import DetrConfig
from longvision.tasks.objects import ObjectTask
from longvision.types import DataInfo


class DetrDetection(ObjectTask):
    """A detector by queries, without anchors and without suppression. Learns from boxes alone."""

    task_name = "detr"
    config: DetrConfig
    create = staticmethod(create_detr)
    limit = "queries"

    def __init__(self, config: DetrConfig, info: DataInfo) -> None:
        super().__init__(config, info, masks=False)

    @property
    def head(self) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in ("queries", "width", "layers", "dropout")}

    def check_fit(self, data: Any) -> None:
        """Batch norms and a ResNet's first stage are frozen: without trained weights they would stay as they began."""
        norms = any(isinstance(module, FrozenBatchNorm2d | FrozenBatchNormAct2d) for module in self.model.modules())
        frozen = norms or not all(parameter.requires_grad for parameter in self.model.parameters())
        if frozen and not self.config.pretrained:
            raise UserError(
                f"{self.config.name} has frozen weights in DETR, as published, and starts from random ones: "
                "give --model.pretrained FILE, or true for those that timm knows, or choose a Vim or a DeiT"
            )
