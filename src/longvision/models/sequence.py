"""Backbones over a sequence of tokens: patches, class tokens among them, positions, then blocks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from timm.layers import lecun_normal_, to_2tuple, trunc_normal_
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.grid import grid_size
from longvision.layers import (
    ClassToken,
    ClassTokens,
    FactorisedPositions,
    PatchEmbed,
    factorised_on_grid,
    packed_pos_embed,
    resample_pos_embed,
)
from longvision.layers.drop_path import rising
from longvision.layers.factorised import FACTORISED, Factorised
from longvision.layers.positions import per_patch, starts_of
from longvision.models.base import Backbone
from longvision.models.classifier import Pool
from longvision.ops.common import cu_seqlens_of, widened
from longvision.types import PackedImages

# They look at dtypes and sizes that a symbolic trace does not know: it records the calls.
torch.fx.wrap("grid_size")
torch.fx.wrap("factorised_on_grid")
torch.fx.wrap("resample_pos_embed")
torch.fx.wrap("widened")


Positions = Literal["absolute"] | Factorised


@dataclass(frozen=True)
class Packing:
    """Where the tokens of packed images stand in their one row.

    Args:
        lengths: tokens of each image, class tokens among them.
        cu_seqlens: int32 (S + 1,), where each image begins and the last ends.
        order: int64 (M,), which of all patches and then all class tokens stands at each place.
        places: int64 (M,), the place of each patch and then of each class token.
        whole: whether the patches fill their grids.
    """

    lengths: Sequence[int]
    cu_seqlens: Tensor
    order: Tensor
    places: Tensor
    whole: bool


@dataclass(frozen=True)
class Layout:
    """Where the images' tokens are: an image a row, or all images one behind another in a single row.

    Args:
        grids: rows and columns of patches: the one of a batch, or that of each packed image.
        packing: of packed images; None for a batch.
        flipped_B: the images whose tokens go from the last to the first; None where none do.
    """

    grids: Sequence[tuple[int, int]]
    packing: Packing | None = None
    flipped_B: Tensor | None = None


class SequenceBackbone(Backbone):
    """(B, C, H, W) or PackedImages -> (B, num_classes), for any H x W that divides into patches.

    Args:
        block: makes block i, with its rate of stochastic depth: (B, M, D) -> (B, M, D), and with `takes_packed` also
            called with cu_seqlens, or what `_block_arguments` returns.
        norm: makes the norm behind the last block, for the model width.
        embed_dim: model width D.
        depth: number of blocks.
        img_size: the size for which position embeddings are held, pixels, (height, width) or one number; images of
            another size get them resampled at each call.
        patch_size: side of a patch, pixels.
        stride: distance between patches, pixels; None for `patch_size`.
        in_chans: channels of the image.
        num_classes: outputs; 0 for none (features are returned).
        cls_token: where the class token stands: "middle", "head", "double" (both ends) or "none"; or a subclass's own.
        pool: what goes to the head: the class "token" (of two, their mean), or "mean" or "max" over the patches, or
            "none" (all tokens), or a subclass's own. None: its own, else "token" where there is one, else "mean".
        positions: position embeddings: "absolute", a table of all patches of one grid, resampled for others, or one of
            those of `longvision.layers.FactorisedPositions`, for images of many shapes.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth at the last block, rising from 0 at the first.
        pad: fill an image whose size does not divide with zeros, right and below, instead of refusing it.

    Raises:
        UserError: an unknown word, a number out of range, or "token" pooling without a class token.
    """

    own_pools: tuple[Pool, ...] = ()
    pyramid_options: ClassVar[dict[str, Any]] = {"cls_token": "none"}  # what a pyramid makes it with

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
        cls_token: ClassToken | ClassTokens = "head",
        pool: Pool | None = None,
        positions: Positions = "absolute",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        pad: bool = False,
    ) -> None:
        check_at_least_one(img_size=img_size, patch_size=patch_size, stride=stride if stride is not None else 1)
        check_at_least_one(in_chans=in_chans, embed_dim=embed_dim, depth=depth)
        if positions not in ("absolute", *FACTORISED):
            raise UserError(f"positions={positions!r} is unknown: choose one of absolute, {', '.join(FACTORISED)}")
        tokens = cls_token if isinstance(cls_token, ClassTokens) else ClassTokens(cls_token)
        given: tuple[Pool, ...] = (*self.own_pools, *(("token",) if tokens.count else ()), "mean", "max", "none")
        self.pools = tuple(dict.fromkeys(given))
        super().__init__(embed_dim, in_chans, num_classes, pool if pool is not None else self.pools[0], drop_rate)

        self.tokens = tokens
        self.num_prefix_tokens = tokens.count
        self.patch_embed = PatchEmbed(patch_size, stride or patch_size, in_chans, embed_dim, pad)
        self.grid = self.patch_embed.grid_size(*to_2tuple(img_size))
        for name in self._token_names():
            own = tokens.count // len(self._token_names())
            self.register_parameter(name, nn.Parameter(torch.empty(1, own, embed_dim)))
        self.positions, held = positions, math.prod(self.grid) + self.tokens.in_positions.count
        self.pos_embed: Any = (
            nn.Parameter(torch.empty(1, held, embed_dim))
            if positions == "absolute"
            else FactorisedPositions(positions, embed_dim, self.grid)
        )
        blocks = [block(i, rate) for i, rate in enumerate(self._rates(drop_path_rate, depth))]
        self._add_blocks(blocks, norm(embed_dim), [(embed_dim, self.patch_embed.stride)] * depth)
        self._init_weights()

    def _rates(self, last: float, depth: int) -> list[float]:
        """Of stochastic depth, a block."""
        return rising(last, depth)

    @torch.no_grad()
    def _init_weights(self) -> None:
        """The blocks have set their own."""
        lecun_normal_(self.patch_embed.proj.weight)
        self.patch_embed.proj.bias.zero_()  # type: ignore[union-attr]
        if isinstance(self.pos_embed, FactorisedPositions):
            self.pos_embed.reset_parameters()
        else:
            trunc_normal_(self.pos_embed, std=0.02)
        for name in self._token_names():
            trunc_normal_(getattr(self, name), std=0.02)
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
        patches_BMD = patch(images)
        x_BMD = self.tokens.insert(patches_BMD, self._class_tokens(patches_BMD.shape[0]))
        return widened(x_BMD) + self._positions(grid, x_BMD), Layout([grid])

    def _positions(self, grid: tuple[int, int], like_BMD: Tensor) -> Tensor:
        """(1, M + class tokens, D)."""
        if self.positions == "absolute":
            return resample_pos_embed(self.pos_embed, self.grid, grid, self.tokens.in_positions)
        return factorised_on_grid(self.pos_embed, grid, self.tokens, like_BMD)

    def _embed_packed(self, images: PackedImages) -> tuple[Tensor, Layout]:
        """Each image as if it were alone: its class tokens at its own middle or ends, positions of its own grid."""
        packing = self._packing(images)
        layout = Layout(images.grids, packing)
        x_1MD = widened(self.patch_embed.packed(images.patches)) + self._packed_positions(images)
        if (class_1TD := self._class_tokens(1)) is None:
            return x_1MD, layout
        class_1TD = self._placed(widened(class_1TD))
        x_1MD = torch.cat([x_1MD, class_1TD.repeat(1, len(images), 1)], dim=1)
        return x_1MD.index_select(1, packing.order), layout

    def _packed_positions(self, images: PackedImages) -> Tensor:
        """(M, D)."""
        number_M, device = images.kept, images.patches.device
        if number_M is None:
            starts_M = per_patch(starts_of(images.lengths), images.lengths, device)
            number_M = torch.arange(len(starts_M), device=device) - starts_M
        if self.positions != "absolute":
            return self.pos_embed.packed(images.grids, number_M, images.lengths)
        return packed_pos_embed(
            self.pos_embed, self.grid, images.grids, number_M, images.lengths, self.tokens.in_positions
        )

    def _placed(self, class_1TD: Tensor) -> Tensor:
        """(1, T, D) -> (1, T, D): class tokens with their positions, if they have some."""
        return class_1TD + self.tokens.alone(self.pos_embed) if self.positions == "absolute" else class_1TD

    def _layout(self, images: PackedImages) -> Layout:
        return Layout(images.grids, self._packing(images))

    def _packing(self, images: PackedImages) -> Packing:
        lengths, device = [length + self.tokens.count for length in images.lengths], images.patches.device
        order = torch.tensor(self.tokens.packed_order(images.lengths))
        places = order.argsort().to(device)
        return Packing(lengths, cu_seqlens_of(lengths, device), order.to(device), places, images.kept is None)

    def _class_tokens(self, batch: int) -> Tensor | None:
        names = self._token_names()
        return torch.cat([getattr(self, name) for name in names], dim=1).expand(batch, -1, -1) if names else None

    def _block_arguments(self, layout: Layout) -> tuple[Any, ...]:
        return () if layout.packing is None else (layout.packing.cu_seqlens,)

    # Tokens to features

    def _patch_features(self, x: Tensor, layout: Layout, output_fmt: str) -> tuple[Any, Any]:
        packing = layout.packing
        if output_fmt == "NCHW" and packing is not None and not packing.whole:
            raise UserError("patches of these images were dropped, so that they fill no maps: ask for output_fmt='NLC'")
        patches, prefixes = self._split(x, packing)
        if output_fmt == "NCHW":
            patches = [_to_map(patches_BMD, grid) for patches_BMD, grid in zip(patches, layout.grids)]
        if packing is not None:
            return patches, prefixes if self.tokens.count else None
        return patches[0], prefixes[0] if self.tokens.count else None

    def _split(self, x_BMD: Tensor, packing: Packing | None) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Patches and class tokens, of a batch in one piece, of packed images one by one."""
        if packing is None:
            patches_BMD, class_BTD = self.tokens.extract(x_BMD)
            return [patches_BMD], [class_BTD]
        count, images = self.tokens.count, len(packing.lengths)
        apart_1MD = x_BMD.index_select(1, packing.places)
        *patches, class_1TD = apart_1MD.split([*(length - count for length in packing.lengths), count * images], dim=1)
        return patches, class_1TD.unflatten(1, (images, count)).unbind(1)

    def _pooled(self, x: Tensor, layout: Layout | None) -> Tensor:
        packing = layout.packing if layout is not None else None
        if self.pool == "token":
            return self._class_states(x, packing).mean(dim=1)
        patches, _ = self._split(x, packing)
        pooled = [part_BMD.mean(1) if self.pool == "mean" else part_BMD.amax(1) for part_BMD in patches]
        return torch.cat(pooled) if len(pooled) > 1 else pooled[0]

    def _class_states(self, x_BMD: Tensor, packing: Packing | None) -> Tensor:
        """(B, M + class tokens, D), or packed (1, M, D) of S images -> class tokens (B, T, D), or (S, T, D)."""
        if packing is None:
            return self.tokens.alone(x_BMD)
        class_T = packing.places[-len(packing.lengths) * self.tokens.count :]
        return x_BMD[0, class_T].unflatten(0, (-1, self.tokens.count))

    # timm's contract

    @torch.no_grad()
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Hold position embeddings for images of that size from now on, resampled from those held."""
        grid = self.patch_embed.grid_size(*to_2tuple(img_size))
        if isinstance(self.pos_embed, FactorisedPositions):
            self.pos_embed.resize(grid)
        else:
            resampled = resample_pos_embed(self.pos_embed, self.grid, grid, self.tokens.in_positions).clone()
            self.pos_embed = nn.Parameter(resampled, requires_grad=self.pos_embed.requires_grad)
        self.grid = grid

    def no_weight_decay(self) -> set[str]:
        """Class tokens and positions too; see `Backbone.no_weight_decay`."""
        positions = {name for name, _ in self.named_parameters() if name.startswith("pos_embed")}
        return {*super().no_weight_decay(), *positions, *self._token_names()}


def check_at_least_one(**values: int | tuple[int, int]) -> None:
    """Raises UserError for a size or count that is no whole number from 1."""
    for name, value in values.items():
        if not all(type(number) is int and number > 0 for number in to_2tuple(value)):
            raise UserError(f"{name} {value!r}: expected a whole number, at least 1")


def _to_map(patches_BMD: Tensor, grid: tuple[int, int]) -> Tensor:
    return patches_BMD.transpose(1, 2).unflatten(2, grid).contiguous()
