"""A mixer over many tokens without gradients, a chunk of them at a time: few tensors are ever as long as the image.

These are the input, what the first direction gives, and the output. All else is made for a chunk and forgotten, for
which the second direction computes the input projection once more.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from longvision.ops.kernels.cpp.allocator import cached_empty
from longvision.ops.kernels.cpp.library import kernels_for
from longvision.ops.kernels.cpp.matmul import matmul
from longvision.ops.mixer.cpu_kernel import Part, normed, run
from longvision.ops.mixer.inputs import MixerInputs, ScanDirection

CHUNK = 512  # tokens
LEAST = 8 * CHUNK  # tokens: from here on what is spared weighs more than what is computed again


def pay(inputs: MixerInputs, save_for_backward: bool) -> bool:
    """Whether chunks are the way: a backward needs all tokens, and packed images are short."""
    return inputs.x_BMD.shape[1] >= LEAST and inputs.cu_seqlens is None and not save_for_backward


def forward(inputs: MixerInputs) -> Tensor:
    """-> the output, (B, M, D)."""
    x_BMD, dtype = inputs.x_BMD, inputs.dtype
    work, (*first, last) = _Work(inputs), inputs.directions
    other_BME = None
    if first:
        real = torch.promote_types(dtype, torch.float32)
        other_BME = cached_empty(*x_BMD.shape[:2], len(last.D_E), dtype=real)
        for _ in work.along(first[0], None, other_BME):
            pass
    out_BMD = cached_empty(*inputs.output_shape(), dtype=inputs.output_dtype())
    weight_ED = inputs.out_proj_DE.to(dtype).t()
    for here, gated_BCE in work.along(last, other_BME, None):
        for x_CD, gated_CE, out_CD in zip(x_BMD[:, here], gated_BCE, out_BMD[:, here]):
            if dtype == out_BMD.dtype:
                matmul(gated_CE, weight_ED, x_CD if inputs.residual else None, out=out_CD)
            else:
                torch.add(matmul(gated_CE, weight_ED), x_CD, out=out_CD)
    return out_BMD


class _Work:
    """What the chunks of a call share: the input, and buffers for what each makes anew."""

    def __init__(self, inputs: MixerInputs) -> None:
        self.inputs, self.scale = inputs, 1 / len(inputs.directions)
        self.in_proj_FD = inputs.in_proj_FD.to(inputs.dtype)
        direction, (batch, tokens, _) = inputs.directions[0], inputs.x_BMD.shape
        most, halo = batch * min(CHUNK, tokens), batch * (direction.filter_EK.shape[1] - 1)
        self.xz = cached_empty((most + halo) * len(self.in_proj_FD), dtype=inputs.dtype)
        self.u = cached_empty(most * len(direction.D_E), dtype=inputs.dtype)
        self.projection = cached_empty(most * len(direction.x_proj_PE), dtype=inputs.dtype)

    def along(
        self, direction: ScanDirection, other_BME: Tensor | None, partial_BME: Tensor | None
    ) -> Iterator[tuple[slice, Tensor]]:
        """One direction: writes what the other will add, or yields, chunk by chunk, both directions' sum, gated."""
        x_BMD, library = self.inputs.x_BMD, kernels_for(self.inputs.dtype)
        batch, tokens, _ = x_BMD.shape
        (width, states), taps = direction.A_log_EN.shape, direction.filter_EK.shape[1]
        weight_DF = (self.in_proj_FD if partial_BME is None else self.in_proj_FD[:width]).t()
        carry_BNE = torch.zeros(batch, states, width, dtype=library.real)
        for here, visible in _chunks(tokens, taps - 1, direction.reverse):
            x_BVD, _ = normed(x_BMD[:, visible], self.inputs)
            xz_BVF = _cut(self.xz, *x_BVD.shape[:2], weight_DF.shape[1])
            matmul(x_BVD.flatten(0, 1), weight_DF, out=xz_BVF.flatten(0, 1))
            xz_BCF = xz_BVF[:, here.start - visible.start : here.stop - visible.start]
            x_BCE, z_BCE = xz_BCF.chunk(2, dim=-1) if partial_BME is None else (xz_BCF, None)
            u_BCE = _cut(self.u, *x_BCE.shape)
            projection_BCP = _cut(self.projection, *x_BCE.shape[:2], len(direction.x_proj_PE))
            partial_BCE, other_BCE = (None if t is None else t[:, here] for t in (partial_BME, other_BME))
            part = Part(direction, u_BCE, projection_BCP, partial_BCE, carry_BNE=carry_BNE)
            boundaries = torch.tensor([0, here.stop - here.start])
            seen = torch.tensor([visible.start - here.start, visible.stop - here.start])
            run(library, x_BCE, z_BCE, [part], other_BCE, self.scale, boundaries, seen)
            yield here, u_BCE


def _cut(memory: Tensor, *shape: int) -> Tensor:
    return memory[: math.prod(shape)].view(shape)


def _chunks(tokens: int, halo: int, reverse: bool) -> Iterator[tuple[slice, slice]]:
    """Chunks in the order of the scan, and beside each what it sees: also `halo` tokens that were scanned before."""
    starts = range(0, tokens, CHUNK)
    for start in reversed(starts) if reverse else starts:
        stop = min(start + CHUNK, tokens)
        seen = (start, min(stop + halo, tokens)) if reverse else (max(start - halo, 0), stop)
        yield slice(start, stop), slice(*seen)
