"""Backbones over a sequence of tokens: patches, class tokens among them, positions, then blocks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import lecun_normal_, to_2tuple, trunc_normal_
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.grid import grid_size
from longvision.layers import ClassToken, ClassTokens, PatchEmbed, resample_pos_embed
from longvision.models.base import Backbone, Pool
from longvision.ops.common import cu_seqlens_of, widened
from longvision.types import PackedImages

# They look at dtypes and sizes that a symbolic trace does not know: it records the calls.
torch.fx.wrap("grid_size")
torch.fx.wrap("resample_pos_embed")
torch.fx.wrap("widened")


@dataclass(frozen=True)
class Layout:
    """Where the images' tokens are: an image a row, or all images one behind another in a single row.

    Args:
        grids: rows and columns of patches: the one of a batch, or that of each packed image.
        lengths: tokens of each packed image, class tokens among them; None for a batch.
        cu_seqlens: int32 (S + 1,), where each packed image begins and the last ends; None for a batch.
        flipped_B: the images whose tokens go from the last to the first; None where none do.
        whole: whether the patches fill the grids.
    """

    grids: Sequence[tuple[int, int]]
    lengths: Sequence[int] | None = None
    cu_seqlens: Tensor | None = None
    flipped_B: Tensor | None = None
    whole: bool = True

    def parts(self, x_BMD: Tensor) -> Sequence[Tensor]:
        """The images one by one, (1, M, D) each, where they are packed; else the batch."""
        return [x_BMD] if self.lengths is None else x_BMD.split(list(self.lengths), dim=1)


class SequenceBackbone(Backbone):
    """(B, C, H, W) or PackedImages -> (B, num_classes), for any H x W that divides into patches.

    Args:
        block: makes block i, with its rate of stochastic depth: (B, M, D) -> (B, M, D), and with `takes_packed` also
            called with cu_seqlens.
        norm: makes the norm behind the last block, for the model width.
        embed_dim: model width D.
        depth: number of blocks.
        img_size: the size for which position embeddings are held, pixels, (height, width) or one number; images of
            another size get them resampled at each call.
        patch_size: side of a patch, pixels.
        stride: distance between patches, pixels; None for `patch_size`.
        in_chans: channels of the image.
        num_classes: outputs; 0 for none (features are returned).
        cls_token: where the class token stands: "middle", "head", "double" (both ends) or "none".
        pool: what goes to the head: the class "token" (of two, their mean), or "mean" or "max" over the patches, or
            "none" (all tokens). None: "token" where there is one, else "mean".
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth at the last block, rising from 0 at the first.
        pad: fill an image whose size does not divide with zeros, right and below, instead of refusing it.

    Raises:
        UserError: an unknown word, a number out of range, or "token" pooling without a class token.
    """

    def __init__(
        self,
        block: Callable[[int, float], nn.Module],
        norm: Callable[[int], nn.Module],
        *,
        embed_dim: int,
        depth: int,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        cls_token: ClassToken = "head",
        pool: Pool | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        pad: bool = False,
    ) -> None:
        check_at_least_one(img_size=img_size, patch_size=patch_size, stride=stride if stride is not None else 1)
        check_at_least_one(in_chans=in_chans, embed_dim=embed_dim, depth=depth)
        if not 0 <= drop_path_rate < 1:
            raise UserError(f"drop_path_rate {drop_path_rate}: expected a number from 0 to below 1")
        tokens = ClassTokens(cls_token)
        self.pools = ("token", "mean", "max", "none") if tokens.count else ("mean", "max", "none")
        super().__init__(embed_dim, in_chans, num_classes, pool if pool is not None else self.pools[0], drop_rate)

        self.tokens = tokens
        self.num_prefix_tokens = tokens.count
        self.patch_embed = PatchEmbed(patch_size, stride or patch_size, in_chans, embed_dim, pad)
        self.grid = self.patch_embed.grid_size(*to_2tuple(img_size))
        for name in self._token_names():
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, embed_dim)))
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid) + tokens.count, embed_dim))
        blocks = [block(i, drop_path_rate * i / max(1, depth - 1)) for i in range(depth)]
        self._add_blocks(blocks, norm(embed_dim), [(embed_dim, self.patch_embed.stride)] * depth)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """The blocks have set their own."""
        lecun_normal_(self.patch_embed.proj.weight)
        self.patch_embed.proj.bias.zero_()  # type: ignore[union-attr]
        for parameter in (self.pos_embed, *(getattr(self, name) for name in self._token_names())):
            trunc_normal_(parameter, std=0.02)
        self._init_head()

    def _token_names(self) -> list[str]:
        """As in the released checkpoints."""
        return [[], ["cls_token"], ["cls_token_head", "cls_token_tail"]][self.tokens.count]

    # Images to tokens

    def embed(self, images: Tensor | PackedImages) -> tuple[Tensor, Layout]:
        """-> (B, M + class tokens, D) with positions, in float32 or better: the residual stays there."""
        if isinstance(images, PackedImages):
            return self._embed_packed(images)
        patch = self.patch_embed
        grid = grid_size(images.shape[2], images.shape[3], patch.patch, patch.stride, patch.pad)
        return self._with_tokens(patch(images), self._positions(grid)), Layout([grid])

    def _embed_packed(self, images: PackedImages) -> tuple[Tensor, Layout]:
        """Each image as if it were alone: its class tokens at its own middle or ends, positions of its own grid."""
        layout = self._layout(images)
        positions = {grid: self._positions(grid) for grid in dict.fromkeys(images.grids)}
        parts_1MD = self.patch_embed.packed(images.patches).split(list(images.lengths), dim=1)
        positions_1MD = [positions[grid] for grid in images.grids]
        if images.kept is not None:
            kept = images.kept.split(list(images.lengths))
            positions_1MD = [self._only(pos, numbers) for pos, numbers in zip(positions_1MD, kept)]
        rows = [self._with_tokens(part, pos) for part, pos in zip(parts_1MD, positions_1MD)]
        return torch.cat(rows, dim=1), layout

    def _only(self, pos_1MD: Tensor, kept_K: Tensor) -> Tensor:
        """(1, M + count, D) -> (1, K + count, D): of the patches that are left; class tokens stand among those."""
        patches_1MD, class_1TD = self.tokens.extract(pos_1MD)
        return self.tokens.insert(patches_1MD[:, kept_K], class_1TD)

    def _layout(self, images: PackedImages) -> Layout:
        lengths = [length + self.tokens.count for length in images.lengths]
        cu_seqlens = cu_seqlens_of(lengths, images.patches.device)
        return Layout(images.grids, lengths, cu_seqlens, whole=images.kept is None)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        return resample_pos_embed(self.pos_embed, self.grid, grid, self.tokens)

    def _with_tokens(self, patches_BMD: Tensor, pos_1MD: Tensor) -> Tensor:
        x_BMD = self.tokens.insert(patches_BMD, self._class_tokens(patches_BMD.shape[0]))
        return widened(x_BMD) + pos_1MD  # the residual stays in float32

    def _class_tokens(self, batch: int) -> Tensor | None:
        names = self._token_names()
        return torch.cat([getattr(self, name) for name in names], dim=1).expand(batch, -1, -1) if names else None

    def _block_arguments(self, layout: Layout) -> tuple[Tensor, ...]:
        return () if layout.cu_seqlens is None else (layout.cu_seqlens,)

    # Tokens to features

    def _patch_features(self, x: Tensor, layout: Layout, output_fmt: str) -> tuple[Any, Any]:
        if output_fmt == "NCHW" and not layout.whole:
            raise UserError("patches of these images were dropped, so that they fill no maps: ask for output_fmt='NLC'")
        split = [self.tokens.extract(part) for part in layout.parts(x)]
        patches = [
            _to_map(patches_BMD, grid) if output_fmt == "NCHW" else patches_BMD
            for (patches_BMD, _), grid in zip(split, layout.grids)
        ]
        prefixes = [prefix_BTD if self.tokens.count else None for _, prefix_BTD in split]
        if layout.lengths is not None:
            return patches, prefixes if self.tokens.count else None
        return patches[0], prefixes[0]

    def _pooled(self, x: Tensor, layout: Layout | None) -> Tensor:
        parts = [x] if layout is None else layout.parts(x)
        pooled = [self._pool_one(part_BMD) for part_BMD in parts]
        return torch.cat(pooled) if len(pooled) > 1 else pooled[0]

    def _pool_one(self, x_BMD: Tensor) -> Tensor:
        if self.pool == "token":
            return self.tokens.alone(x_BMD).mean(dim=1)
        patches_BMD, _ = self.tokens.extract(x_BMD)
        return patches_BMD.mean(dim=1) if self.pool == "mean" else patches_BMD.amax(dim=1)

    # timm's contract

    @torch.no_grad()
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Hold position embeddings for images of that size from now on, resampled from those held."""
        grid = self.patch_embed.grid_size(*to_2tuple(img_size))
        resampled = resample_pos_embed(self.pos_embed, self.grid, grid, self.tokens).clone()
        self.pos_embed = nn.Parameter(resampled, requires_grad=self.pos_embed.requires_grad)
        self.grid = grid

    def no_weight_decay(self) -> set[str]:
        """Class tokens and positions; see `Backbone.no_weight_decay`."""
        return {"pos_embed", *self._token_names()}


def check_at_least_one(**values: int | tuple[int, int]) -> None:
    """Raises UserError for a size or count that is no whole number from 1."""
    for name, value in values.items():
        if not all(type(number) is int and number > 0 for number in to_2tuple(value)):
            raise UserError(f"{name} {value!r}: expected a whole number, at least 1")


def _to_map(patches_BMD: Tensor, grid: tuple[int, int]) -> Tensor:
    return patches_BMD.transpose(1, 2).unflatten(2, grid).contiguous()
