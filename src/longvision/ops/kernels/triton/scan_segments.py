"""Small batches of long sequences: segments of them are scanned side by side, once they know what they start from.

First every segment is scanned from zero: how far it takes a state (`ends`), and what of a state before it is left
behind it (`decays`). Both are small, so a short kernel then goes from segment to segment. The adjoint state of the
backward pass obeys the same recurrence, the other way round.
"""

import triton
import triton.language as tl

from longvision.ops.kernels.triton.arithmetic import load_pair
from longvision.ops.kernels.triton.order import channels_of, of_channels, place_of, starts_at
from longvision.ops.kernels.triton.scan_forward import decay_rates, row_of, step_of, unless


@triton.jit
def scan_ends(
    x,
    x_batch,
    x_row,
    step,
    step_batch,
    step_row,
    BC,
    A,
    bias,
    sequence,
    ends,
    decays,
    tokens,
    width,
    group_width,
    rows,
    columns,
    segment_tokens,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,
    REVERSE: tl.constexpr,
    LOG_DECAY: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    ADJOINT: tl.constexpr,
):
    """Program (tile of channels, segment, batch). With ADJOINT `x` is the gradient of y, and the scan goes backward."""
    e, inside, own = channels_of(tl.program_id(0), width, group_width, CHANNELS)
    segment = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    rates = decay_rates(A, e, inside, N, LOG_DECAY)
    bias_E = of_channels(bias, e, inside)
    h = ()
    for n in tl.static_range(N):
        h = h + (tl.zeros([CHANNELS], tl.float32),)
    elapsed = tl.zeros([CHANNELS], tl.float32)
    crossed = 0

    first = segment * segment_tokens
    last = tl.minimum(first + segment_tokens, tokens)
    x += b * x_batch + e
    step += b * step_batch + e
    if group_width is None:
        BC_row = N
        BC += b * tokens * N
    else:
        BC_row = width // group_width * N
        BC += b * tokens * BC_row + own * N
    next_t = place_of(last - 1 if ADJOINT else first, tokens, rows, columns, REVERSE)
    next_x, next_step = row_of(x, x_row, step, step_row, next_t, inside)
    for i in range(0, last - first):
        p = last - 1 - i if ADJOINT else first + i
        t = next_t
        u = next_x.to(tl.float32)
        stored = next_step
        next_p = tl.maximum(p - 1, first) if ADJOINT else tl.minimum(p + 1, last - 1)
        next_t = place_of(next_p, tokens, rows, columns, REVERSE)
        next_x, next_step = row_of(x, x_row, step, step_row, next_t, inside)
        d, raw = step_of(stored, bias_E, inside, bias is not None, SOFTPLUS == "take")
        elapsed += d
        begins = starts_at(sequence, p, tokens, REVERSE)
        if sequence is not None:
            crossed += tl.where(begins, 1, 0)
        new = ()
        for n in tl.static_range(N):
            B, C = load_pair(BC + t * BC_row + n)
            decay = tl.exp2(d * rates[n])
            if ADJOINT:
                new = new + (unless(begins, decay * (h[n] + u * C), sequence is not None),)
            else:
                new = new + (decay * unless(begins, h[n], sequence is not None) + d * u * B,)
        h = new
    for n in tl.static_range(N):
        place = ((b * tl.num_programs(1) + segment) * width + e) * N + n
        tl.store(ends + place, h[n], mask=inside)
        tl.store(decays + place, unless(crossed > 0, tl.exp2(elapsed * rates[n]), sequence is not None), mask=inside)


@triton.jit
def scan_starts(ends, decays, first, segments, size, BLOCK: tl.constexpr, ADJOINT: tl.constexpr):
    """Program (block of the N E states, batch): what each segment starts from, written over `ends`; the one that comes
    first from `first`, or if that is None from zero."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(1).to(tl.int64)
    inside = i < size
    if first is None:
        h = tl.zeros([BLOCK], tl.float32)
    else:
        h = tl.load(first + b * size + i, mask=inside, other=0.0)
    for k in range(0, segments):
        segment = segments - 1 - k if ADJOINT else k
        place = (b * segments + segment) * size + i
        end = tl.load(ends + place, mask=inside, other=0.0)
        decay = tl.load(decays + place, mask=inside, other=0.0)
        tl.store(ends + place, h, mask=inside)
        h = tl.where(decay == 0.0, 0.0, decay * h) + end  # behind a boundary no NaN is left of what was before it
