"""A residual Mamba block on the kernels in C++. The normalised input is made again in the backward, not kept."""

import torch
from torch import Tensor

from longvision.ops.mamba_inner import cpu as mixer
from longvision.ops.mamba_inner import slabs
from longvision.ops.mamba_inner.cpu import Kept
from longvision.ops.mamba_inner.walk import Inner
from longvision.ops.rms_norm import cpu as norm


def forward(
    x_BMD: Tensor, norm_weight_D: Tensor, eps: float, dtype: torch.dtype, inner: Inner, keep: bool
) -> tuple[Tensor, Kept]:
    """-> x + mixer(norm(x)), in x's precision, and what the backward needs (empty unless `keep`); the mixer's tensors
    are stored in `dtype`."""

    def normed(x_BMD: Tensor) -> Tensor:
        return norm.forward(x_BMD, norm_weight_D, eps, dtype)[0]

    if slabs.pay(x_BMD.shape[1], inner, keep):
        return slabs.forward(x_BMD, inner, dtype, normed, add=True), mixer.nothing_kept(dtype)
    xz_BMF = mixer.project_in(normed(x_BMD), inner)
    gated_BME, kept = mixer.forward_between(xz_BMF, inner, keep)
    assert inner.out_proj_DE is not None
    weight_ED = inner.out_proj_DE.to(dtype).t()
    if dtype != x_BMD.dtype:
        return mixer.tokens_times(gated_BME, weight_ED) + x_BMD, kept
    return mixer.tokens_times(gated_BME, weight_ED, x_BMD), kept


def backward(
    grad_BMD: Tensor, kept: Kept, x_BMD: Tensor, norm_weight_D: Tensor, eps: float, dtype: torch.dtype, inner: Inner
) -> list[Tensor]:
    """Gradients of x, the norm's weight, each walk's parameters, and both projections, each in its tensor's dtype."""
    normed_BMD, inverse_BM = norm.forward(x_BMD, norm_weight_D, eps, dtype)
    dnormed_BMD, *of_mixer = mixer.backward(grad_BMD, kept, normed_BMD, inner)
    dx_BMD, dweight_D = norm.backward(dnormed_BMD, inverse_BM, x_BMD, norm_weight_D, eps, dtype)
    return [dx_BMD.add_(grad_BMD), dweight_D, *of_mixer]
