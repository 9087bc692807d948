"""A mixer over many tokens without gradients, a slab of them at a time: few tensors are ever as long as the image.

These are the input, what the first direction gives, and the output. All else is made for a slab and forgotten, for
which the second direction computes the input projection once more.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from longvision.ops.kernels.cpp import kernels, product, room
from longvision.ops.mamba_inner.cpu import Part, run
from longvision.ops.mamba_inner.walk import Inner, Walk

SLAB = 512  # tokens
LEAST = 8 * SLAB  # tokens: from here on what is saved weighs more than what is computed again


def pay(tokens: int, inner: Inner, keep: bool) -> bool:
    """Whether slabs are the way: a backward needs all tokens, and packed images are short."""
    projected = inner.in_proj_FD is not None and inner.out_proj_DE is not None
    return tokens >= LEAST and projected and inner.cu_seqlens is None and not keep


def forward(x_BMD: Tensor, inner: Inner, dtype: torch.dtype, before: Callable[[Tensor], Tensor], add: bool) -> Tensor:
    """-> mixer(before(x)), plus x if `add`, (B, M, D) in x's dtype; the mixer's tensors are stored in `dtype`."""
    assert inner.out_proj_DE is not None
    work, (*first, last) = _Work(x_BMD, inner, dtype, before), inner.walks
    other_BME = None
    if first:
        real = torch.promote_types(dtype, torch.float32)
        other_BME = room(*x_BMD.shape[:2], len(last.D_E), dtype=real)
        for _ in work.along(first[0], None, other_BME):
            pass
    out_BMD = room(*inner.output_shape(x_BMD), dtype=x_BMD.dtype)
    weight_ED = inner.out_proj_DE.to(dtype).t()
    for here, gated_BSE in work.along(last, other_BME, None):
        for x_SD, gated_SE, out_SD in zip(x_BMD[:, here], gated_BSE, out_BMD[:, here]):
            if dtype == x_BMD.dtype:
                product(gated_SE, weight_ED, x_SD if add else None, out=out_SD)
            else:
                out_SD.copy_(product(gated_SE, weight_ED) + (x_SD if add else 0))
    return out_BMD


class _Work:
    """What the slabs of a call share: the input, and room for what each makes anew."""

    def __init__(self, x_BMD: Tensor, inner: Inner, dtype: torch.dtype, before: Callable[[Tensor], Tensor]) -> None:
        assert inner.in_proj_FD is not None
        self.x_BMD, self.before, self.dtype = x_BMD, before, dtype
        self.in_proj_FD, self.scale = inner.in_proj_FD.to(dtype), 1 / len(inner.walks)
        walk, most = inner.walks[0], len(x_BMD) * min(SLAB, x_BMD.shape[1])
        halo = walk.filter_EK.shape[1] - 1
        self.xz = room((most + len(x_BMD) * halo) * len(self.in_proj_FD), dtype=dtype)
        self.u = room(most * len(walk.D_E), dtype=dtype)
        self.projection = room(most * len(walk.x_proj_PE), dtype=dtype)

    def along(self, walk: Walk, other_BME: Tensor | None, partial_BME: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        """One direction: writes what the other will add, or yields, slab by slab, both directions' sum, gated."""
        library = kernels(self.dtype)
        assert library is not None, "available() was not asked"
        batch, tokens, _ = self.x_BMD.shape
        (width, states), taps = walk.A_log_EN.shape, walk.filter_EK.shape[1]
        weight_DF = (self.in_proj_FD if partial_BME is None else self.in_proj_FD[:width]).t()
        carry_BNE = torch.zeros(batch, states, width, dtype=library.real)
        for here, visible in _slabs(tokens, taps - 1, walk.reverse):
            x_BVD = self.before(self.x_BMD[:, visible])
            xz_BVF = _cut(self.xz, *x_BVD.shape[:2], weight_DF.shape[1])
            product(x_BVD.flatten(0, 1), weight_DF, out=xz_BVF.flatten(0, 1))
            xz_BSF = xz_BVF[:, here.start - visible.start : here.stop - visible.start]
            x_BSE, z_BSE = xz_BSF.chunk(2, dim=-1) if partial_BME is None else (xz_BSF, None)
            u_BSE = _cut(self.u, *x_BSE.shape)
            projection_BSP = _cut(self.projection, *x_BSE.shape[:2], len(walk.x_proj_PE))
            partial_BSE, other_BSE = (None if t is None else t[:, here] for t in (partial_BME, other_BME))
            part = Part(walk, u_BSE, projection_BSP, partial_BSE, carry_BNE=carry_BNE)
            borders = torch.tensor([0, here.stop - here.start])
            seen = torch.tensor([visible.start - here.start, visible.stop - here.start])
            run(library, x_BSE, z_BSE, [part], other_BSE, self.scale, borders, seen)
            yield here, u_BSE


def _cut(memory: Tensor, *shape: int) -> Tensor:
    return memory[: math.prod(shape)].view(shape)


def _slabs(tokens: int, halo: int, reverse: bool) -> Iterator[tuple[slice, slice]]:
    """Slabs in the order of the walk, and beside each what it sees: also `halo` tokens that were walked before."""
    starts = range(0, tokens, SLAB)
    for start in reversed(starts) if reverse else starts:
        stop = min(start + SLAB, tokens)
        seen = (start, min(stop + halo, tokens)) if reverse else (max(start - halo, 0), stop)
        yield slice(start, stop), slice(*seen)
