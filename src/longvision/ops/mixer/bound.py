"""Blocks whose parameters were checked before: little is asked at each call, and a stack is one call of the kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from longvision.ops.causal_conv1d.cpu import MOST_TAPS
from longvision.ops.common import are_plain, autocast_dtype, check_cu_seqlens, choose_backend, is_unseen
from longvision.ops.mixer import cpu
from longvision.ops.mixer.inputs import MixerInputs, ScanDirection, check_mixer
from longvision.ops.mixer.op import computed, mixer


class BoundBlock:
    """x + mixer(norm(x)) of parameters that are checked once, for whoever calls it again and again.

    The numbers are read at each call. That the parameters are still those tensors, of the same shapes in the same
    memory, is for the caller to see to. Arguments as in `mixer`.
    """

    def __init__(
        self,
        directions: Sequence[ScanDirection],
        in_proj_FD: Tensor,
        out_proj_DE: Tensor,
        norm_weight_D: Tensor,
        eps: float = 1e-5,
    ) -> None:
        self.directions, self.weights, self.eps = directions, (in_proj_FD, out_proj_DE, norm_weight_D), eps
        self.tensors = self._inputs(norm_weight_D, None, norm_weight_D.dtype).tensors()[1:]
        self.known: dict[torch.dtype, cpu.Parameters] = {}  # as the kernels for that dtype read them

    def __call__(self, x_BMD: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """(B, M, D) -> (B, M, D)."""
        parameters = self.parameters_for(x_BMD)
        if parameters is None:
            return mixer(x_BMD, self.directions, *self.weights, cu_seqlens, residual=True, eps=self.eps)
        if cu_seqlens is not None:
            check_cu_seqlens(cu_seqlens, x_BMD)
        inputs = self._inputs(x_BMD, cu_seqlens, parameters.library.dtype)
        return computed(inputs, inputs.tensors(), parameters)

    def _inputs(self, x_BMD: Tensor, cu_seqlens: Tensor | None, dtype: torch.dtype) -> MixerInputs:
        return MixerInputs(x_BMD, self.directions, *self.weights, cu_seqlens, True, self.eps, dtype)

    def parameters_for(self, x_BMD: Tensor) -> cpu.Parameters | None:
        """None where the op is to be called: it is to be seen, or something is not as it was."""
        if not (is_unseen() and forward_ad._current_level < 0 and are_plain((x_BMD,))):
            return None
        dtype = autocast_dtype(self.weights[-1])
        if choose_backend(None, "cpu", dtype) != "cpu":
            return None
        known = self.known.get(dtype)
        if known is None:
            check_mixer(x_BMD, [own.with_filter_EK() for own in self.directions], *self.weights, True)
            inputs = self._inputs(x_BMD, None, dtype)
            if not are_plain(inputs.tensors()) or inputs.directions[0].filter_EK.shape[-1] > MOST_TAPS:
                return None
            known = self.known[dtype] = cpu.Parameters(inputs)
        fits = x_BMD.ndim == 3 and x_BMD.dtype == known.library.real and x_BMD.shape[2] == known.channels
        return known if fits and x_BMD.shape[1] else None


def run_stack(blocks: Sequence[BoundBlock], x_BMD: Tensor, cu_seqlens: Tensor | None = None) -> Tensor | None:
    """(B, M, D) -> (B, M, D), through one block after the other, without a backward, in one call of the kernels.

    None where the blocks are to be called one by one: one of them goes through the dispatcher or converts parameters,
    they differ in shape, or the image is so long that it is taken in chunks.
    """
    known = blocks[0].parameters_for(x_BMD)
    if known is None or cpu.goes_in_chunks(x_BMD, cu_seqlens):
        return None
    dtype = known.library.dtype
    stack = []
    for block in blocks:
        own = block.known.get(dtype) or block.parameters_for(x_BMD)
        if own is None or not own.in_place or own.shape != known.shape:
            return None
        stack.append(own)
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, x_BMD)
    return cpu.forward_stack(x_BMD, stack, cu_seqlens)
