"""Maps at strides 4, 8, 16 and 32 from a backbone of one stride: ViTDet's simple feature pyramid (arXiv 2203.16527).

`NAME_pyramid` is the backbone NAME with the pyramid on it: what dense heads ask of a timm model, `features_only=True`
with strides that double. Our own have one; `register_pyramid` gives one of timm's plain vision transformers one.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import timm
import torch.nn.functional as F
from timm.layers import LayerNorm2d, to_2tuple
from timm.models import generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.models.registered import kind_of
from longvision.models.sequence import SequenceBackbone

STRIDES = (4, 8, 16, 32)
SUFFIX = "_pyramid"
default_cfgs: dict[str, Any] = {}  # of the names registered so far, for timm
Blocks = Literal["last", "spread"]


class FeaturePyramid(nn.Module):
    """(B, C, H, W) -> maps (B, channels, ⌈H/s⌉, ⌈W/s⌉) for s of 4, 8, 16 and 32, for any H x W.

    Coarser maps than the backbone's come by max pooling, finer ones by transposed convolutions of stride 2 with
    LayerNorm and GELU between.

    Args:
        base: a timm model all of whose blocks have one stride s0, a power of two. Its final norm is applied to
            every map.
        blocks: where the maps come from. "last": all four from the last block, as ViTDet's; each transposed convolution
            halves the channels. "spread": one each from the blocks at a quarter, a half, three quarters and the end (6,
            12, 18 and 24), as UPerNet is fed in the Vim paper's segmentation; the channels stay.
        out_chans: if given, a 1x1 and a 3x3 convolution with LayerNorms make every map this wide, as ViTDet's.

    Raises:
        UserError: an unknown word, a backbone with several strides or with one that is no power of two, fewer than
            four blocks to spread over.
    """

    def __init__(self, base: Any, blocks: Blocks = "last", out_chans: int | None = None) -> None:
        super().__init__()
        if blocks not in get_args(Blocks):
            raise UserError(f"blocks={blocks!r} is unknown: choose {' or '.join(get_args(Blocks))}")
        if out_chans is not None and out_chans < 1:
            raise UserError(f"out_chans {out_chans}: expected at least 1, or None for the maps as they are")
        stride, width, depth = _only_stride(base), int(base.embed_dim), len(base.feature_info)
        if blocks == "spread" and depth < len(STRIDES):
            raise UserError(f'blocks="spread" needs {len(STRIDES)} blocks, the backbone has {depth}: choose last')
        self.blocks, self.stride, self.in_chans = blocks, stride, getattr(base, "in_chans", 3)
        ends = [depth] if blocks == "last" else [depth * (i + 1) // len(STRIDES) for i in range(len(STRIDES))]
        self.taken = base.prune_intermediate_layers([end - 1 for end in ends], prune_norm=False, prune_head=True)
        self.base = base
        self.margin = _margin(base, stride)

        levels, self.feature_info = [], []
        for i, wanted in enumerate(STRIDES):
            level, channels = resample(width, stride, wanted, halve=blocks == "last")
            if out_chans is not None:
                level, channels = nn.Sequential(level, _to_width(channels, out_chans)), out_chans
            levels.append(level)
            self.feature_info.append({"module": f"levels.{i}", "num_chs": channels, "reduction": wanted})
        self.levels = nn.ModuleList(levels)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> the four maps, finest first."""
        return self.forward_intermediates(x_BCHW, intermediates_only=True)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """timm's contract; `indices` count the four maps from the finest. Raises ValueError for what it cannot do."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: a pyramid returns NCHW maps only")
        if norm:
            raise ValueError("norm=True: a pyramid has no norm behind its maps; the backbone's is applied before them")
        if not isinstance(x, Tensor):
            raise UserError(f"a pyramid takes images of one size, (B, C, H, W), and no {type(x).__name__}")
        take, _ = feature_take_indices(len(STRIDES), indices)
        height, width = x.shape[2:]
        maps = []
        for i, coarse_BCHW in zip(take, self._backbone_maps(x, take, stop_early)):
            map_BCHW = self.levels[i](coarse_BCHW)
            maps.append(map_BCHW[:, :, : -(-height // STRIDES[i]), : -(-width // STRIDES[i])])
        return maps if intermediates_only else (maps[-1], maps)

    def _backbone_maps(self, x_BCHW: Tensor, take: Sequence[int], stop_early: bool) -> list[Tensor]:
        """(B, D, ⌈H/32⌉ 32/s0, ⌈W/32⌉ 32/s0) for each map: padded so that cells nest in those of stride 32."""
        bottom, right = (-side % STRIDES[-1] for side in x_BCHW.shape[2:])
        near, far = self.margin
        x_BCHW = F.pad(x_BCHW, (near, right + far, near, bottom + far))
        blocks = [self.taken[i] for i in take] if self.blocks == "spread" else self.taken
        coarse = self.base.forward_intermediates(
            x_BCHW, indices=blocks, norm=True, stop_early=stop_early, output_fmt="NCHW", intermediates_only=True
        )
        return coarse if self.blocks == "spread" else coarse * len(take)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what serves other maps alone: a parameter without a gradient stops distributed training."""
        take, _ = feature_take_indices(len(STRIDES), indices)
        self.levels = nn.ModuleList(level if i in take else nn.Identity() for i, level in enumerate(self.levels))
        return take

    def no_weight_decay(self) -> set[str]:
        """The backbone's parameters to keep out of weight decay, under their names here."""
        return {f"base.{name}" for name in self.base.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Of the backbone: store each block's input alone for the backward pass, and compute the rest again."""
        self.base.set_grad_checkpointing(enable)


def _only_stride(base: Any) -> int:
    strides = {info["reduction"] for info in base.feature_info}
    stride = strides.pop()
    if strides or stride < 1 or int(math.log2(stride)) != math.log2(stride) or stride > STRIDES[-1]:
        found = ", ".join(str(info["reduction"]) for info in base.feature_info)
        raise UserError(
            f"the backbone's maps have strides {found}: expected one stride for all, 1, 2, 4, 8, 16 or 32; "
            "a model with several is a pyramid itself: use it with features_only=True"
        )
    return int(stride)


def _margin(base: Any, stride: int) -> tuple[int, int]:
    """Zeros before and behind each side, so that overlapping patches lie centred on their cells."""
    embed = base.patch_embed
    patch = embed.patch if hasattr(embed, "patch") else embed.proj.kernel_size[0]
    return (patch - stride) // 2, -(-(patch - stride) // 2)


def resample(channels: int, stride: int, wanted: int, halve: bool) -> tuple[nn.Module, int]:
    """From one stride to another; -> the module and its channels."""
    if wanted >= stride:
        side = wanted // stride
        return (nn.MaxPool2d(side) if side > 1 else nn.Identity()), channels
    steps: list[nn.Module] = []
    for n in range(int(math.log2(stride // wanted))):
        if n:
            steps += [LayerNorm2d(channels), nn.GELU()]
        wide = channels // 2 if halve else channels
        steps.append(nn.ConvTranspose2d(channels, wide, 2, 2))
        channels = wide
    return nn.Sequential(*steps), channels


def _to_width(channels: int, out_chans: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, out_chans, 1, bias=False),
        LayerNorm2d(out_chans),
        nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
        LayerNorm2d(out_chans),
    )


def has_pyramid(name: str) -> bool:
    """Whether it is a backbone whose patches fit into cells of 32 pixels: one of ours, or timm's plain transformers."""
    stem = name.partition(".")[0]
    if not timm.is_model(stem) or stem.endswith(SUFFIX):
        return False
    if issubclass(kind_of(stem), SequenceBackbone):
        return True
    patch = re.search(r"_patch(\d+)_", f"{stem}_")
    fits = patch is not None and int(patch[1]) in STRIDES
    return fits and timm.models.is_model_in_modules(stem, ("vision_transformer", "deit"))


def register_pyramid(name: str) -> str:
    """Register `NAME_pyramid` with timm, unless it is, and return that name; the tag behind a dot stays.

    Raises UserError for a model that does not exist, or whose blocks do not all have one stride.
    """
    stem, dot, tag = name.partition(".")
    if not has_pyramid(name):
        raise UserError(
            f"model {name} gets no pyramid: expected a model of ours, a DeiT or a ViT with patches of 4, 8, 16 or 32"
        )
    if not timm.is_model(f"{stem}{SUFFIX}"):
        # Input size, normalisation and licence are the backbone's; timm finds them under this module's name for them.
        tagged = timm.list_models(f"{stem}.*", include_tags=True)
        found = {known.partition(".")[2]: timm.get_pretrained_cfg(known) for known in tagged or [stem]}
        default_cfgs.update(
            generate_default_cfgs({f"{stem}{SUFFIX}.{key}": replace(cfg) for key, cfg in found.items() if cfg})
        )
        register_model(_entry(stem))
    return f"{stem}{SUFFIX}{dot}{tag}"


def _create_pyramid(
    base: str,
    pretrained: bool = False,
    features_only: bool = False,
    out_indices: int | list[int] | tuple[int, ...] = (0, 1, 2, 3),
    blocks: Blocks = "last",
    out_chans: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """For timm.create_model; what is not the pyramid's goes to the backbone, its weights among it."""
    if "img_size" in kwargs:  # positions for what the backbone will see: the image padded to whole cells
        kwargs["img_size"] = tuple(-(-side // STRIDES[-1]) * STRIDES[-1] for side in to_2tuple(kwargs["img_size"]))
    own: dict[str, Any] = getattr(kind_of(base), "pyramid_options", {"dynamic_img_size": True})
    backbone = timm.create_model(base, pretrained=pretrained, **{"num_classes": 0, **own, **kwargs})
    model = FeaturePyramid(backbone, blocks, out_chans)
    return FeatureGetterNet(model, out_indices=out_indices) if features_only else model  # type: ignore[arg-type]


def _entry(base: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create_pyramid(base, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = f"{base}{SUFFIX}"
    create.__doc__ = f"{base} with maps at strides 4, 8, 16 and 32."
    return create
