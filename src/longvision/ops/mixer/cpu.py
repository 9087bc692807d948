"""A Mamba mixer, or the block around it, on the kernels in C++ (ops/kernels/cpp/block_forward.h, block_backward.h): one
call forward and one back.

Saved for the backward are x and z, the small projections and the states between chunks of tokens; all else is computed
again. A long image without gradients is taken in chunks, for which little is ever as long as the image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longvision.ops.common import boundaries_for_cpu
from longvision.ops.kernels.cpp.allocator import cached_empty
from longvision.ops.kernels.cpp.library import kernels_for
from longvision.ops.kernels.cpp.outside import outside_matmul
from longvision.ops.kernels.cpp.record import address, contiguous, double, pack
from longvision.ops.mixer.inputs import MixerInputs
from longvision.ops.selective_scan.cpu import num_chunks

CHUNK = 512  # tokens
LEAST = 8 * CHUNK  # tokens: from here on what chunks spare weighs more than what they compute again
NO_DIRECTION = (0,) * 8  # in place of a second one


class Saved(NamedTuple):
    """For the backward: x and z, and of each of W directions the projections and the states. Empty, or all there."""

    xz_BMF: Tensor
    projections_WBMP: Tensor
    states_WBKNE: Tensor


def saved_shapes(inputs: MixerInputs, save_for_backward: bool) -> tuple[tuple[int, ...], ...]:
    """Of each tensor of `Saved`."""
    if not save_for_backward:
        return (0,), (0,), (0,)
    (batch, tokens, _), directions = inputs.x_BMD.shape, inputs.directions
    width, states = directions[0].A_log_EN.shape
    return (
        (batch, tokens, 2 * width),
        (len(directions), batch, tokens, directions[0].x_proj_PE.shape[0]),
        (len(directions), batch, num_chunks(tokens, inputs.cu_seqlens), states, width),
    )


def forward(inputs: MixerInputs, save_for_backward: bool, known: "Parameters | None" = None) -> tuple[Tensor, Saved]:
    """-> the output (B, M, D), and what the backward needs (empty unless `save_for_backward`).

    `known`: where the parameters are, from an earlier call.
    """
    parameters = known if known is not None and known.in_place else Parameters(inputs)
    library = parameters.library
    xz, projections, states = saved_shapes(inputs, save_for_backward)
    saved = Saved(
        cached_empty(*xz, dtype=library.dtype),
        cached_empty(*projections, dtype=library.dtype),
        cached_empty(*states, dtype=library.real),
    )
    in_chunks = goes_in_chunks(inputs.x_BMD, inputs.cu_seqlens) and not save_for_backward  # a backward needs all tokens
    call = _Call(
        parameters, inputs.x_BMD, inputs.cu_seqlens, saved if save_for_backward else None, CHUNK if in_chunks else 0
    )
    out_BMD = cached_empty(*inputs.output_shape(), dtype=inputs.output_dtype())
    space = cached_empty(library.space_of_block_forward(call.record), dtype=torch.uint8)
    library.blocks_forward(call.record, 1, space.data_ptr(), out_BMD.data_ptr())
    return out_BMD, saved


def goes_in_chunks(x_BMD: Tensor, cu_seqlens: Tensor | None) -> bool:
    """Whether the image is so long that it is taken in chunks; packed images are short."""
    return x_BMD.shape[1] >= LEAST and cu_seqlens is None


def forward_stack(x_BMD: Tensor, blocks: Sequence["Parameters"], cu_seqlens: Tensor | None) -> Tensor:
    """(B, M, D) -> (B, M, D): blocks with residuals one after the other, all of the first one's `shape`, not in chunks
    and without a backward."""
    library = blocks[0].library
    call = _Call(blocks[0], x_BMD, cu_seqlens, None, 0)
    out_BMD = cached_empty(*x_BMD.shape, dtype=library.real)
    space = cached_empty(library.space_of_block_forward(call.record), dtype=torch.uint8)
    record = call.record + b"".join(block.record for block in blocks[1:])
    library.blocks_forward(record, len(blocks), space.data_ptr(), out_BMD.data_ptr())
    return out_BMD


def backward(grad_BMD: Tensor, saved: Saved, inputs: MixerInputs) -> list[Tensor]:
    """Gradients of `inputs.tensors()`, each in its tensor's dtype."""
    parameters = Parameters(inputs, of_weights=inputs.dtype)
    library = parameters.library
    call = _Call(parameters, inputs.x_BMD, inputs.cu_seqlens, saved, 0)
    grad_BMD = grad_BMD.contiguous()
    dout_BMD = grad_BMD.to(library.dtype)
    norms = [] if inputs.norm_weight_D is None else [inputs.norm_weight_D]
    dx_BMD = torch.empty_like(inputs.x_BMD, memory_format=torch.contiguous_format)
    of_norm = [torch.empty_like(weight, dtype=library.real) for weight in norms]
    of_weights = [_empty(weight, library.dtype) for weight in (inputs.in_proj_FD, inputs.out_proj_DE)]
    of_directions = [
        [_empty(t, library.dtype if t is direction.x_proj_PE else library.real) for t in direction.tensors()]
        for direction in inputs.directions
    ]
    gradients = pack(
        *(dout_BMD.data_ptr(), address(grad_BMD if inputs.residual else None), dx_BMD.data_ptr()),
        *(address(of_norm[0] if of_norm else None), *(t.data_ptr() for t in of_weights)),
        *(t.data_ptr() for grads in of_directions for t in grads),
        *((0,) * 7 * (2 - len(of_directions))),
    )
    space = cached_empty(library.space_of_block_backward(call.record), dtype=torch.uint8)
    library.block_backward(call.record, space.data_ptr(), gradients)
    found = [dx_BMD, *(t for grads in of_directions for t in grads), *of_weights, *of_norm]
    return [grad.to(tensor.dtype) for grad, tensor in zip(found, inputs.tensors())]


def _empty(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(parameter.shape, dtype=dtype)


class Parameters:
    """The part of the kernels' record that says where the parameters are, good as long as they stay there.

    `in_place`: the kernels read all parameters where they are; else what had to be converted was so for one call. The
    weights of the projections may be in either dtype in the forward; in the backward they are in the kernels' own.
    """

    def __init__(self, inputs: MixerInputs, of_weights: torch.dtype | None = None) -> None:
        self.library = library = kernels_for(inputs.dtype)
        first, norm_weight = inputs.directions[0], inputs.norm_weight_D
        (self.width, self.states), self.channels = first.A_log_EN.shape, inputs.in_proj_FD.shape[1]
        self.directions = len(inputs.directions)
        norms = [] if norm_weight is None else [contiguous(norm_weight, library.real)]
        weights = [inputs.in_proj_FD, inputs.out_proj_DE]
        if of_weights is None:
            of_weights = library.real if all(weight.dtype == library.real for weight in weights) else library.dtype
        weights = [contiguous(weight, of_weights) for weight in weights]
        directions = [[contiguous(t, library.real) for t in d.tensors()] for d in inputs.directions]
        self._alive = tensors = [*(t for own in directions for t in own), *weights, *norms]
        self.in_place = all(read is given for read, given in zip(tensors, inputs.tensors()[1:]))
        rank, taps, outputs = first.dt_proj_ER.shape[1], first.filter_EK.shape[-1], len(inputs.out_proj_DE)
        self.shape = self.channels, self.width, self.states, rank, taps, outputs, self.directions
        self.record = pack(
            *(*self.shape, inputs.residual),
            *(address(norms[0] if norms else None), double(inputs.eps), *(weight.data_ptr() for weight in weights)),
            *(of_weights == library.real, outside_matmul(library.dtype)),
            *(field for own, d in zip(directions, inputs.directions) for field in (*map(address, own), d.reverse)),
            *NO_DIRECTION * (2 - self.directions),
        )


class _Call:
    """The record that both kernels read, and what it holds the addresses of."""

    def __init__(
        self, parameters: Parameters, x_BMD: Tensor, cu_seqlens: Tensor | None, saved: Saved | None, chunk: int
    ) -> None:
        x_BMD = x_BMD.contiguous()
        batch, tokens, _ = x_BMD.shape
        boundaries = boundaries_for_cpu(cu_seqlens, tokens)
        other_BME = None
        if chunk and parameters.directions > 1:
            other_BME = cached_empty(batch, tokens, parameters.width, dtype=parameters.library.real)
        here = pack(
            *(batch, tokens, torch.get_num_threads(), chunk),
            *(boundaries.data_ptr(), len(boundaries) - 1, num_chunks(tokens, cu_seqlens)),
            x_BMD.data_ptr(),
            *((0, 0, 0) if saved is None else (t.data_ptr() for t in saved)),
            address(other_BME),
        )
        self.record = here + parameters.record
        self._alive = x_BMD, boundaries, parameters, other_BME
