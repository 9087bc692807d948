"""The short depthwise convolution with SiLU: lanes are channels; a run of tokens in order, the last few in a window.

So every token is read once, and the backward pass needs no second look at its neighbours.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from longvision.ops.kernels.triton.arithmetic import sigmoid
from longvision.ops.kernels.triton.launch import launch, rows
from longvision.ops.kernels.triton.order import of_channels, token_at

RUN = 64  # tokens of a program
CHANNELS = 64


@triton.jit
def same_sequence(sequence, p, back, tokens, REVERSE: tl.constexpr):
    """Whether the token `back` before the p-th one in the order of the scan is in its sequence."""
    own = tl.load(sequence + token_at(p, tokens, REVERSE), mask=p < tokens, other=-1)
    inside = (p >= back) & (p < tokens)
    return own == tl.load(sequence + token_at(p - back, tokens, REVERSE), mask=inside, other=-2)


@triton.jit
def convolution_forward(
    x,
    x_batch,
    x_row,
    weight,
    bias,
    sequence,
    y,
    tokens,
    width,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    RUN: tl.constexpr,
    REVERSE: tl.constexpr,
    SILU: tl.constexpr,
):
    """Program (tile of channels, run of tokens, batch)."""
    e = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    b = tl.program_id(2).to(tl.int64)
    inside = e < width
    first = tl.program_id(1) * RUN
    x += b * x_batch + e
    y += b * tokens * width + e
    taps = ()
    window = ()  # the tokens before p, the nearest first
    for k in tl.static_range(TAPS):
        taps = taps + (tl.load(weight + e * TAPS + (TAPS - 1 - k), mask=inside, other=0.0).to(tl.float32),)
        if k > 0:
            here = e < tl.where(first >= k, width, 0)
            window = window + (
                tl.load(x + token_at(first - k, tokens, REVERSE) * x_row, mask=here, other=0.0).to(tl.float32),
            )
    bias_E = of_channels(bias, e, inside)
    for p in range(first, tl.minimum(first + RUN, tokens)):
        t = token_at(p, tokens, REVERSE)
        window = (tl.load(x + t * x_row, mask=inside, other=0.0).to(tl.float32),) + window
        y_E = bias_E
        for k in tl.static_range(TAPS):
            seen = window[k]
            if sequence is not None:
                seen = tl.where(same_sequence(sequence, p, k, tokens, REVERSE), seen, 0.0)
            y_E += taps[k] * seen
        if SILU:
            y_E *= sigmoid(y_E)
        tl.store(y + t * width, y_E, mask=inside)
        window = window[: TAPS - 1]


@triton.jit
def convolution_backward(
    x,
    x_batch,
    x_row,
    weight,
    bias,
    sequence,
    grad,
    dx,
    dx_batch,
    dx_row,
    dweight,
    dbias,
    tokens,
    width,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    RUN: tl.constexpr,
    REVERSE: tl.constexpr,
    SILU: tl.constexpr,
    ADD: tl.constexpr,
):
    """Program (tile of channels, run of tokens, batch): its run of dx (added to what is there with ADD), and its parts
    of the sums for weight and bias.

    A token's gradient comes from itself and the TAPS - 1 behind it: so many are visited beyond the run.
    """
    e = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    b = tl.program_id(2).to(tl.int64)
    inside = e < width
    first = tl.program_id(1) * RUN
    last = tl.minimum(first + RUN, tokens)
    x += b * x_batch + e
    grad += b * tokens * width + e
    dx += b * dx_batch + e
    taps = ()
    window = ()
    pending = ()  # what the tokens before p have gathered, the nearest first
    sums = ()
    for k in tl.static_range(TAPS):
        taps = taps + (tl.load(weight + e * TAPS + (TAPS - 1 - k), mask=inside, other=0.0).to(tl.float32),)
        sums = sums + (tl.zeros([CHANNELS], tl.float32),)
        if k > 0:
            here = e < tl.where(first >= k, width, 0)
            window = window + (
                tl.load(x + token_at(first - k, tokens, REVERSE) * x_row, mask=here, other=0.0).to(tl.float32),
            )
            pending = pending + (tl.zeros([CHANNELS], tl.float32),)
    bias_E = of_channels(bias, e, inside)
    dbias_E = tl.zeros([CHANNELS], tl.float32)

    for p in range(first, last + TAPS - 1):
        t = token_at(p, tokens, REVERSE)
        here = e < tl.where(p < tokens, width, 0)
        window = (tl.load(x + t * x_row, mask=here, other=0.0).to(tl.float32),) + window
        of_y = tl.load(grad + t * width, mask=here, other=0.0).to(tl.float32)
        y_E = bias_E
        visible = ()
        for k in tl.static_range(TAPS):
            seen = window[k]
            if sequence is not None:
                seen = tl.where(same_sequence(sequence, p, k, tokens, REVERSE), seen, 0.0)
            visible = visible + (seen,)
            y_E += taps[k] * seen
        if SILU:
            share = sigmoid(y_E)
            of_y *= share * (1.0 + y_E * (1.0 - share))
        own = tl.where(p < last, of_y, 0.0)
        dbias_E += own
        new_sums = ()
        gathered = ()
        for k in tl.static_range(TAPS):
            new_sums = new_sums + (sums[k] + own * visible[k],)
            given = of_y * taps[k]
            if sequence is not None:
                given = tl.where(same_sequence(sequence, p, k, tokens, REVERSE), given, 0.0)
            gathered = gathered + (given if k == 0 else pending[k - 1] + given,)
        sums = new_sums
        done = p - (TAPS - 1)
        place = dx + token_at(done, tokens, REVERSE) * dx_row
        written = e < tl.where((done >= first) & (done < last), width, 0)
        dx_E = gathered[TAPS - 1]
        if ADD:
            dx_E += tl.load(place, mask=written, other=0.0).to(tl.float32)
        tl.store(place, dx_E, mask=written)
        pending = gathered[: TAPS - 1]
        window = window[: TAPS - 1]

    program = b * tl.num_programs(1) + tl.program_id(1)
    for k in tl.static_range(TAPS):
        tl.store(dweight + (program * width + e) * TAPS + (TAPS - 1 - k), sums[k], mask=inside)
    tl.store(dbias + program * width + e, dbias_E, mask=inside)


def forward(
    x_BME: Tensor, weight_EK: Tensor, bias_E: Tensor | None, silu: bool, reverse: bool, sequence_M: Tensor | None
) -> Tensor:
    """(B, M, E) -> (B, M, E); x has contiguous channels."""
    batch, tokens, width = x_BME.shape
    y_BME = torch.empty_like(x_BME, memory_format=torch.contiguous_format)
    grid = -(-width // CHANNELS), -(-tokens // RUN), batch
    given = *rows(x_BME), weight_EK.contiguous(), _dense(bias_E), sequence_M, y_BME, tokens, width
    launch(convolution_forward, grid, *given, **_constants(weight_EK, silu, reverse))
    return y_BME


def backward(
    grad_BME: Tensor,
    x_BME: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor | None,
    silu: bool,
    reverse: bool,
    sequence_M: Tensor | None,
    dx_BME: Tensor,
    add: bool = False,
) -> tuple[Tensor, Tensor]:
    """Writes the gradient of x, or with `add` adds it to what dx holds; -> gradients of weight and bias, float32."""
    (batch, tokens, width), taps = x_BME.shape, weight_EK.shape[1]
    runs = -(-tokens // RUN)
    dweight = x_BME.new_empty((batch * runs, width, taps), dtype=torch.float32)
    dbias = x_BME.new_empty((batch * runs, width), dtype=torch.float32)
    grid = -(-width // CHANNELS), runs, batch
    read = *rows(x_BME), weight_EK.contiguous(), _dense(bias_E), sequence_M, grad_BME
    written = *rows(dx_BME), dweight, dbias
    launch(convolution_backward, grid, *read, *written, tokens, width, **_constants(weight_EK, silu, reverse), ADD=add)
    return dweight.sum(0), dbias.sum(0)


def _constants(weight_EK: Tensor, silu: bool, reverse: bool) -> dict[str, Any]:
    return {"TAPS": weight_EK.shape[1], "CHANNELS": CHANNELS, "RUN": RUN, "REVERSE": reverse, "SILU": silu}


def _dense(bias_E: Tensor | None) -> Tensor | None:
    return None if bias_E is None else bias_E.contiguous()
