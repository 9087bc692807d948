"""Backbones over a hierarchy of maps: stages of blocks, each on a map half as high and wide as the one before."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longvision.layers.patch_embed import checked_images
from longvision.models.base import Backbone
from longvision.ops.common import widened

# They look at sizes and dtypes that a symbolic trace does not know: it records the calls.
torch.fx.wrap("checked_images")
torch.fx.wrap("widened")


class Stage(nn.Module):
    """(B, H, W, D) -> (B, H, W, D): blocks on maps of one size. What takes the map to the next stage lies beside them.

    Args:
        blocks: (B, H, W, D) -> (B, H, W, D).
        downsample: (B, H, W, D) -> (B, H / 2, W / 2, D'), called between this stage and the next; None at the last.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = nn.Identity() if downsample is None else downsample

    def forward(self, x_BHWD: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        for block in self.blocks:
            x_BHWD = block(x_BHWD)
        return x_BHWD


class HierarchyBackbone(Backbone):
    """(B, C, H, W) -> (B, num_classes), for any H x W. Channels are last inside: maps are (B, H, W, D).

    A subclass calls `super().__init__`, makes `patch_embed`, which takes images with channels last (B, H, W, C) to the
    first stage's map, and calls `_add_stages`; the rest of timm's contract follows. Arguments are those of `Backbone`.
    """

    blocks_name = "stages"
    formats = "NCHW", "NHWC"
    output_fmt = "NHWC"  # of the modules in `feature_info`, for timm's wrappers that take what these return
    smallest = 1  # side of an image, pixels
    patch_embed: nn.Module

    def _add_stages(self, stages: Sequence[Stage], norm: nn.Module, scales: Sequence[tuple[int, int]]) -> None:
        """See `_add_blocks`: a stage is a block, whose channels and stride are those before its `downsample`."""
        self._add_blocks(stages, norm, scales)
        for info, stage in zip(self.feature_info, stages):  # whose own name is that of its downsample too
            info["module"] += f".blocks.{len(stage.blocks) - 1}"

    def embed(self, images: Tensor) -> tuple[Tensor, None]:
        """-> (B, H, W, D), in float32 or better: the residual stays there. Raises UserError for other images."""
        images_BHWC = checked_images(images, self.in_chans, self.smallest).permute(0, 2, 3, 1).contiguous()
        return widened(self.patch_embed(images_BHWC)), None

    def _step(self, number: int, x: Tensor, layout: None) -> Tensor:
        stage: Any = self._blocks()[number]
        if number:
            x = widened(self._blocks()[number - 1].downsample(x))  # type: ignore[operator]
        if not self.grad_checkpointing:
            return stage(x)
        for block in stage.blocks:
            x = self._run(block, x, layout)
        return x

    def _norm(self, number: int = -1) -> nn.Module:
        """The last stage alone has one."""
        return super()._norm() if number in (-1, len(self.feature_info) - 1) else nn.Identity()

    def _patch_features(self, x: Tensor, layout: None, output_fmt: str) -> tuple[Tensor, None]:
        x = x.to(next(self.parameters()).dtype)  # for the convolutions of a head behind the residual
        return x if output_fmt == "NHWC" else x.permute(0, 3, 1, 2), None

    def _pooled(self, x: Tensor, layout: None) -> Tensor:
        return x.mean((1, 2)) if self.pool == "mean" else x.amax((1, 2))

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last one asked for and what leads to them, the final norm and the head, where not
        needed."""
        take = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        self._blocks()[-1].downsample = nn.Identity()
        return take

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters form one layer, a block or with `coarse` a stage, for layer-wise learning-rate decay."""
        stage = rf"^{self.blocks_name}\.(\d+)"
        # 99999: with the layer before
        fine = [(rf"{stage}\.blocks\.(\d+)", None), (rf"{stage}\.downsample", (99999,))]
        norm = (rf"^{self.norm_name}", (99999,))
        return {"stem": r"^patch_embed", "blocks": [*([(stage, None)] if coarse else fine), norm]}
