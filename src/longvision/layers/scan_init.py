"""What the parameters of a selective scan, and of what is behind it, begin with."""

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def init_scan(A_log_EN: Tensor, D_E: Tensor, dt_proj_ER: Tensor, dt_bias_E: Tensor) -> None:
    """Mamba's initialisation (arXiv 2312.00752, section 3.6), in place; leading dimensions are directions."""
    if A_log_EN.is_meta:  # nothing to fill, and torch takes its time for that
        return
    states, rank = A_log_EN.shape[-1], dt_proj_ER.shape[-1]
    A_log_EN.copy_(torch.arange(1.0, states + 1).log().expand_as(A_log_EN))
    D_E.fill_(1)
    nn.init.uniform_(dt_proj_ER, -(rank**-0.5), rank**-0.5)
    # softplus(bias) is log-uniform in [0.001, 0.1]: x + log(1 - exp(-x)) is softplus's inverse.
    step = torch.empty_like(dt_bias_E).uniform_(math.log(1e-3), math.log(1e-1)).exp()
    dt_bias_E.copy_(step + torch.log(-torch.expm1(-step)))


@torch.no_grad()
def scale_branches(blocks: nn.ModuleList) -> None:
    """So that as many residual branches add up to the variance of one (GPT-2's scheme)."""
    for block in blocks:
        block.mixer.out_proj.weight /= math.sqrt(len(blocks))  # type: ignore[union-attr, operator]
