"""A residual Mamba block on a GPU. The normalised input is made again in the backward, not kept."""

import torch
from torch import Tensor

from longvision.ops.mamba_inner import cuda as mixer
from longvision.ops.mamba_inner.cuda import Kept
from longvision.ops.mamba_inner.walk import Inner


def forward(
    x_BMD: Tensor, norm_weight_D: Tensor, eps: float, dtype: torch.dtype, inner: Inner, keep: bool
) -> tuple[Tensor, Kept]:
    """-> x + mixer(norm(x)), in x's precision, and what the backward needs (empty unless `keep`); the mixer's tensors
    are stored in `dtype`."""
    from longvision.ops.kernels.triton import norm

    normed_BMD, _, _ = norm.forward(x_BMD, norm_weight_D, eps, dtype)
    out_BMD, kept = mixer.forward(normed_BMD, inner, keep)
    # However the tokens lie: an op's output is contiguous, as its fake one is.
    total_BMD = torch.empty_like(x_BMD, memory_format=torch.contiguous_format)
    return torch.add(x_BMD, out_BMD, out=total_BMD), kept


def backward(
    grad_BMD: Tensor, kept: Kept, x_BMD: Tensor, norm_weight_D: Tensor, eps: float, dtype: torch.dtype, inner: Inner
) -> list[Tensor]:
    """Gradients of x, the norm's weight, each walk's parameters, and both projections, each in its tensor's dtype."""
    from longvision.ops.kernels.triton import norm

    normed_BMD, inverse_BM, _ = norm.forward(x_BMD, norm_weight_D, eps, dtype)
    dnormed_BMD, *of_mixer = mixer.backward(grad_BMD, kept, normed_BMD, inner)
    dx_BMD, dweight_D = norm.backward(dnormed_BMD, inverse_BM, x_BMD, norm_weight_D, passed_BMD=grad_BMD)
    return [dx_BMD, dweight_D, *of_mixer]
