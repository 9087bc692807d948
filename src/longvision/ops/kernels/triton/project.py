"""What a direction's scan reads, in one kernel: convolution, SiLU, the projections to step, B and C, softplus.

A program has a block of tokens. It goes over the channels twice: once to convolve them and to gather the matmuls with
x_proj on the tensor cores, once more to spread the low-rank step over them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from longvision.ops.kernels.triton.arithmetic import matmul, sigmoid, softplus
from longvision.ops.kernels.triton.launch import launch, rows
from longvision.ops.kernels.triton.order import of_channels

TOKENS, CHANNELS = 64, 32  # of a program; of them at a time
WARPS = 8  # with 4, registers are spilled at Vim-S's rank


@triton.jit
def project(
    x,
    x_batch,
    x_row,
    weight,
    bias,
    x_proj,
    dt_proj,
    dt_bias,
    sequence,
    u,
    step,
    low,
    BC,
    tokens,
    width,
    rank,
    N: tl.constexpr,
    TAPS: tl.constexpr,
    RANK: tl.constexpr,
    PAIRS: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Program (block of tokens, batch). RANK and PAIRS are `rank` and 2 N, rounded up to what tensor cores take."""
    t_T = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    b = tl.program_id(1).to(tl.int64)
    r_R = tl.arange(0, RANK)
    c_C = tl.arange(0, PAIRS)
    row_C = rank + c_C // 2 + (c_C % 2) * N  # of x_proj: B and C alternate
    here_T = t_T < tokens
    x += b * x_batch
    out = (b * tokens + t_T[:, None]) * width
    low_TR = tl.zeros([TOKENS, RANK], tl.float32)
    BC_TC = tl.zeros([TOKENS, PAIRS], tl.float32)
    own_T = tl.zeros([TOKENS], tl.int32)
    if sequence is not None:
        own_T = tl.load(sequence + t_T, mask=here_T, other=-1)
    for start in range(0, width, CHANNELS):
        e = start + tl.arange(0, CHANNELS)
        inside = e < width
        y_TE = tl.zeros([TOKENS, CHANNELS], tl.float32) + of_channels(bias, e, inside)[None, :]
        for k in tl.static_range(TAPS):
            s_T = t_T + k if REVERSE else t_T - k
            seen_T = here_T & (s_T >= 0) & (s_T < tokens)
            if sequence is not None:
                seen_T = seen_T & (tl.load(sequence + s_T, mask=seen_T, other=-2) == own_T)
            tap = tl.load(weight + e * TAPS + (TAPS - 1 - k), mask=inside, other=0.0).to(tl.float32)
            seen = tl.load(x + s_T[:, None] * x_row + e[None, :], mask=seen_T[:, None] & inside[None, :], other=0.0)
            y_TE += seen.to(tl.float32) * tap[None, :]
        u_TE = (y_TE * sigmoid(y_TE)).to(u.dtype.element_ty)
        tl.store(u + out + e[None, :], u_TE, mask=here_T[:, None] & inside[None, :])
        low_ER = tl.load(
            x_proj + r_R[None, :] * width + e[:, None], mask=inside[:, None] & (r_R < rank)[None, :], other=0.0
        )
        BC_EC = tl.load(
            x_proj + row_C[None, :] * width + e[:, None], mask=inside[:, None] & (c_C < 2 * N)[None, :], other=0.0
        )
        low_TR = matmul(u_TE, low_ER.to(u_TE.dtype), low_TR)
        BC_TC = matmul(u_TE, BC_EC.to(u_TE.dtype), BC_TC)
    BC_place = (b * tokens + t_T[:, None]) * (2 * N) + c_C[None, :]
    tl.store(BC + BC_place, BC_TC, mask=here_T[:, None] & (c_C < 2 * N)[None, :])
    low_half = low_TR.to(u.dtype.element_ty)
    if low is not None:
        low_place = (b * tokens + t_T[:, None]) * rank + r_R[None, :]
        tl.store(low + low_place, low_half, mask=here_T[:, None] & (r_R < rank)[None, :])
    for start in range(0, width, CHANNELS):
        e = start + tl.arange(0, CHANNELS)
        inside = e < width
        dt_RE = tl.load(
            dt_proj + e[None, :] * rank + r_R[:, None], mask=inside[None, :] & (r_R < rank)[:, None], other=0.0
        )
        # The bias meets the step in float32: beside -7, half precision has no place for the step's last digits.
        raw_TE = tl.zeros([TOKENS, CHANNELS], tl.float32) + of_channels(dt_bias, e, inside)[None, :]
        raw_TE = matmul(low_half, dt_RE.to(low_half.dtype), raw_TE)
        tl.store(step + out + e[None, :], softplus(raw_TE), mask=here_T[:, None] & inside[None, :])


def projected(
    x_BME: Tensor,
    filter_EK: Tensor,
    filter_bias_E: Tensor,
    x_proj_PE: Tensor,
    dt_proj_ER: Tensor,
    dt_bias_E: Tensor,
    reverse: bool,
    sequence_M: Tensor | None,
    keep_low: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """-> u = silu(convolution) (B, M, E) in x's dtype, the step in it or, for float16, in float32, B and C side by side
    (B, M, N, 2) in float32, and if asked the low-rank step (B, M, R). x has contiguous channels."""
    (batch, tokens, width), (rank, taps) = x_BME.shape, (dt_proj_ER.shape[1], filter_EK.shape[1])
    states = (x_proj_PE.shape[0] - rank) // 2
    u_BME = torch.empty_like(x_BME, memory_format=torch.contiguous_format)
    # A small step has no digits in float16, which ends at 6e-8, and its slope has none either.
    step_BME = torch.empty_like(u_BME, dtype=torch.float32 if x_BME.dtype == torch.float16 else x_BME.dtype)
    BC_BMN2 = x_BME.new_empty((batch, tokens, states, 2), dtype=torch.float32)
    low_BMR = x_BME.new_empty((batch, tokens, rank)) if keep_low else None
    parameters = (t.contiguous() for t in (filter_EK, filter_bias_E, x_proj_PE, dt_proj_ER, dt_bias_E))
    given = *rows(x_BME), *parameters, sequence_M, u_BME, step_BME, low_BMR, BC_BMN2, tokens, width, rank
    sizes = {"N": states, "TAPS": taps, "TOKENS": TOKENS, "CHANNELS": CHANNELS}
    padded = {"RANK": max(16, triton.next_power_of_2(rank)), "PAIRS": max(16, triton.next_power_of_2(2 * states))}
    launch(project, (-(-tokens // TOKENS), batch), *given, warps=WARPS, **sizes, **padded, REVERSE=reverse)
    return u_BME, step_BME, BC_BMN2, low_BMR
