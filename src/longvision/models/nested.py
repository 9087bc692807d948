"""Maps at strides 4, 8, 16 and 32 of two hierarchies that do not have them as dense heads want them: EfficientViT and
MobileViT v2."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models._features import FeatureInfo
from timm.models.efficientvit_msra import EfficientVitStage
from timm.models.mobilevit import MobileVitV2Block
from torch import Tensor, nn

from longvision.models.pyramid import STRIDES, resample

CELL = 64  # pixels: of the coarsest map, and twice the coarsest cell of MobileViT v2, which is halved inside


class NestedMaps(nn.Module):
    """(B, C, H, W) -> maps (B, channels, ⌈H/s⌉, ⌈W/s⌉) for each s of `strides`, finest first, for any H x W.

    EfficientViT has maps of strides 16, 32 and 64. Finer ones come from its first by transposed convolutions, as
    ViTDet's (arXiv 2203.16527); the last is enlarged and concatenated to the map of stride 32, so that no stage is
    lost. MobileViT v2 rounds the sides of its maps up to even numbers; images are padded by zeros to multiples of 64
    pixels, where there is nothing to round, and the maps cut again.

    Args:
        base: timm's features of one image, a map for each of its `feature_info`.
        strides: of the maps, some of 4, 8, 16 and 32.
    """

    def __init__(self, base: Any, strides: Sequence[int]) -> None:
        super().__init__()
        self.base, self.strides = base, tuple(strides)
        given = dict(zip(base.feature_info.reduction(), base.feature_info.channels(), strict=True))
        self.given = tuple(given)
        self.sources = [_sources(self.given, stride) for stride in self.strides]
        levels, info = [], []
        for i, (stride, sources) in enumerate(zip(self.strides, self.sources)):
            level, channels = zip(*(resample(given[source], source, stride, halve=True) for source in sources))
            levels.append(nn.ModuleList(level))
            info.append({"module": f"levels.{i}", "num_chs": sum(channels), "reduction": stride})
        self.levels = nn.ModuleList(levels)
        self.feature_info = FeatureInfo(info, tuple(range(len(info))))

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> the maps, finest first."""
        height, width = x_BCHW.shape[2:]
        maps = dict(zip(self.given, self.base(F.pad(x_BCHW, (0, -width % CELL, 0, -height % CELL)))))
        nested = []
        levels: Any
        for stride, sources, levels in zip(self.strides, self.sources, self.levels):
            parts = [level(maps[source]) for source, level in zip(sources, levels)]
            nested.append(torch.cat(parts, 1)[:, :, : -(-height // stride), : -(-width // stride)])
        return nested


def needs_nesting(features: nn.Module) -> bool:
    """Whether it is one of these two, made with `features_only`."""
    return any(isinstance(module, EfficientVitStage | MobileVitV2Block) for module in features.modules())


def needed_maps(there: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Which of the maps of strides `there` those of `strides` are made of, by number."""
    needed = {source for stride in strides for source in _sources(there, stride)}
    return [number for number, stride in enumerate(there) if stride in needed]


def _sources(there: Sequence[int], stride: int) -> list[int]:
    """The strides of the maps that one is made of."""
    if stride == STRIDES[-1]:
        return [one for one in there if one >= stride]
    return [max(stride, there[0])]
