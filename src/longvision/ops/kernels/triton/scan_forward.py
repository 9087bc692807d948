"""The selective scan, forward: lanes are channels, time is a loop, the states of a channel stay in registers.

h is a tuple of N vectors of CHANNELS, not a tile: so the compiler keeps all states of a channel in the lane that has
the channel, and the time loop needs no shuffle, no shared memory and no barrier.
"""

import triton
import triton.language as tl

from longvision.ops.kernels.triton.arithmetic import LOG2E, load_pair, sigmoid, softplus
from longvision.ops.kernels.triton.order import channels_of, of_channels, place_of, starts_at


@triton.jit
def decay_rate(A, e, n, inside, N: tl.constexpr, LOG_DECAY: tl.constexpr):
    """Of the n-th states: A times log2(e), for exp2; `A` is (E, N), or with LOG_DECAY log(-A)."""
    a = tl.load(A + e * N + n, mask=inside, other=0.0).to(tl.float32)
    if LOG_DECAY:
        a = -tl.exp(a)
    return a * LOG2E


@triton.jit
def decay_rates(A, e, inside, N: tl.constexpr, LOG_DECAY: tl.constexpr):
    """Of all states, as a tuple of N vectors."""
    rates = ()
    for n in tl.static_range(N):
        rates = rates + (decay_rate(A, e, n, inside, N, LOG_DECAY),)
    return rates


@triton.jit
def unless(begins, h, PACKED: tl.constexpr):
    """h, or zero where a packed sequence begins, whatever h is: no NaN goes from one image to the next."""
    if PACKED:
        h = tl.where(begins, 0.0, h)
    return h


@triton.jit
def row_of(x, x_row, step, step_row, t, inside):
    """x and the step of the token at t, as they are stored.

    The kernels ask for a token's row while they work on the one before it: a scheduler has one warp or two, and nothing
    else to do while a row comes from memory.
    """
    return tl.load(x + t * x_row, mask=inside, other=0.0), tl.load(step + t * step_row, mask=inside, other=0.0)


@triton.jit
def step_of(stored, bias, inside, BIAS: tl.constexpr, TAKE_SOFTPLUS: tl.constexpr):
    """The step sizes of a token, and what softplus was taken of; a masked token has the step 0."""
    raw = stored.to(tl.float32)
    if BIAS:
        raw += bias
    step = raw
    if TAKE_SOFTPLUS:
        step = softplus(raw)
    if BIAS or TAKE_SOFTPLUS:  # else it was 0 as it was loaded
        step = tl.where(inside, step, 0.0)
    return step, raw


@triton.jit
def scan_forward(
    x,
    x_batch,
    x_row,
    step,
    step_batch,
    step_row,
    BC,
    A,
    D,
    bias,
    z,
    z_batch,
    z_row,
    other,
    sequence,
    starts,
    states,
    last_state,
    y,
    out,
    tokens,
    width,
    group_width,
    rows,
    columns,
    segment_tokens,
    scale,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    REVERSE: tl.constexpr,
    LOG_DECAY: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """Program (tile of channels, segment of tokens, batch): y = (scale (h C + D x) + other) silu(z), saved states, y.

    A tensor that is None is left out. `p` counts tokens in the order of the scan, `t` in memory.
    """
    e, inside, own = channels_of(tl.program_id(0), width, group_width, CHANNELS)
    segment = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    rates = decay_rates(A, e, inside, N, LOG_DECAY)

    skip = of_channels(D, e, inside)
    bias_E = of_channels(bias, e, inside)
    h = ()
    for n in tl.static_range(N):
        if starts is not None:
            place = ((b * tl.num_programs(1) + segment) * width + e) * N + n
            h = h + (tl.load(starts + place, mask=inside, other=0.0),)
        else:
            h = h + (tl.zeros([CHANNELS], tl.float32),)

    first = segment * segment_tokens
    last = tl.minimum(first + segment_tokens, tokens)
    chunks = tl.cdiv(tokens, CHUNK)
    x += b * x_batch + e
    step += b * step_batch + e
    if group_width is None:
        BC_row = N
        BC += b * tokens * N
    else:
        BC_row = width // group_width * N
        BC += b * tokens * BC_row + own * N
    row = b * tokens * width + e
    next_t = place_of(first, tokens, rows, columns, REVERSE)
    next_x, next_step = row_of(x, x_row, step, step_row, next_t, inside)
    for chunk in range(first // CHUNK, tl.cdiv(last, CHUNK)):
        if states is not None:
            for n in tl.static_range(N):
                tl.store(states + ((b * chunks + chunk) * width + e) * N + n, h[n], mask=inside)
        for p in range(chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, last)):
            t = next_t
            u = next_x.to(tl.float32)
            stored = next_step
            next_t = place_of(tl.minimum(p + 1, last - 1), tokens, rows, columns, REVERSE)
            next_x, next_step = row_of(x, x_row, step, step_row, next_t, inside)
            d, raw = step_of(stored, bias_E, inside, bias is not None, SOFTPLUS == "take")
            du = d * u
            y_E = skip * u
            begins = starts_at(sequence, p, tokens, REVERSE)
            new = ()
            for n in tl.static_range(N):
                B, C = load_pair(BC + t * BC_row + n)
                before = unless(begins, h[n], sequence is not None)
                new = new + (tl.exp2(d * rates[n]) * before + du * B,)
                y_E += new[n] * C
            h = new
            y_E *= scale
            if other is not None:
                y_E += tl.load(other + row + t * width, mask=inside, other=0.0).to(tl.float32)
            if y is not None:
                tl.store(y + row + t * width, y_E, mask=inside)
            if z is not None:
                z_E = tl.load(z + b * z_batch + t * z_row + e, mask=inside, other=0.0).to(tl.float32)
                y_E *= z_E * sigmoid(z_E)
            tl.store(out + row + t * width, y_E, mask=inside)
    if last_state is not None:
        for n in tl.static_range(N):
            tl.store(last_state + (b * width + e) * N + n, h[n], mask=inside & (segment == tl.num_programs(1) - 1))
