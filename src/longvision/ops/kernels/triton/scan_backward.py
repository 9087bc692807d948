"""The selective scan, backward: from the states saved every CHUNK tokens, without ever dividing by a decay.

A chunk is gone through twice. Forward, to leave the state before every SPAN tokens in `scratch`. Then backward, span by
span: for each n, SPAN tokens forward again, their decays and states in registers, and SPAN tokens back with the
adjoint state. Taking n in the outer loop needs registers for one n's span at a time. Sums over channels (B and C) are
partial sums of the tile, added by the caller in a fixed order: no atomics, the same bits every time.
"""

import triton
import triton.language as tl

from longvision.ops.kernels.triton.arithmetic import LN2, lane_sums, load_pair, sigmoid, slope_of_softplus
from longvision.ops.kernels.triton.order import channels_of, of_channels, place_of, starts_at
from longvision.ops.kernels.triton.scan_forward import decay_rate, row_of, step_of, unless


@triton.jit
def scan_backward(
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
    grad,
    sequence,
    states,
    starts,
    scratch,
    dx,
    dstep,
    dBC,
    dA,
    dD,
    dbias,
    dinitial,
    tokens,
    width,
    group_width,
    rows,
    columns,
    segment_tokens,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    SPAN: tl.constexpr,
    REVERSE: tl.constexpr,
    LOG_DECAY: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """Program (tile of channels, segment of tokens, batch): gradients of x and step, and its parts of the sums.

    `grad` is that of y = h C + D x. `dA` is of A, whatever LOG_DECAY says of what is read. `starts` are the adjoint
    states behind each segment.
    """
    tile = tl.program_id(0)
    e, inside, own = channels_of(tile, width, group_width, CHANNELS)
    segment = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    program = b * tl.num_programs(1) + segment
    skip = of_channels(D, e, inside)
    bias_E = of_channels(bias, e, inside)
    dh = ()
    for n in tl.static_range(N):
        if starts is not None:
            dh = dh + (tl.load(starts + (program * width + e) * N + n, mask=inside, other=0.0),)
        else:
            dh = dh + (tl.zeros([CHANNELS], tl.float32),)
    dD_E = tl.zeros([CHANNELS], tl.float32)
    dbias_E = tl.zeros([CHANNELS], tl.float32)

    first = segment * segment_tokens
    last = tl.minimum(first + segment_tokens, tokens)
    chunks = tl.cdiv(tokens, CHUNK)
    x += b * x_batch + e
    step += b * step_batch + e
    row = b * tokens * width + e
    if group_width is None:
        BC_row = N
        BC += b * tokens * N
        behind = width
    else:
        BC_row = width // group_width * N
        BC += b * tokens * BC_row + own * N
        behind = (own + 1) * group_width
    dBC += (tile * tl.num_programs(2) + b) * tokens * (2 * N)
    scratch += (program * tl.num_programs(0) + tile) * (CHUNK // SPAN + 2) * N * CHANNELS + tl.arange(0, CHANNELS)
    # Decay rates and the sums for A live in memory, too: with them in registers, others would be spilled.
    rates = scratch + (CHUNK // SPAN) * N * CHANNELS
    sums = rates + N * CHANNELS
    for k in range(0, N):
        tl.store(rates + k * CHANNELS, decay_rate(A, e, k, inside, N, LOG_DECAY))
        tl.store(sums + k * CHANNELS, tl.zeros([CHANNELS], tl.float32))
    tl.debug_barrier()

    for i in range(0, tl.cdiv(last - first, CHUNK)):
        chunk = tl.cdiv(last, CHUNK) - 1 - i
        begin = chunk * CHUNK
        spans = tl.cdiv(tl.minimum(CHUNK, last - begin), SPAN)

        h = ()
        rates_N = ()
        for n in tl.static_range(N):
            rates_N = rates_N + (tl.load(rates + n * CHANNELS),)
            h = h + (tl.load(states + ((b * chunks + chunk) * width + e) * N + n, mask=inside, other=0.0),)
        next_t = place_of(begin, tokens, rows, columns, REVERSE)
        next_x, next_step = row_of(x, x_row, step, step_row, next_t, inside)
        for span in range(0, spans):
            for n in tl.static_range(N):
                tl.store(scratch + (span * N + n) * CHANNELS, h[n])
            of_span = begin + span * SPAN
            for p in range(of_span, tl.minimum(of_span + SPAN, last)):
                t = next_t
                u = next_x.to(tl.float32)
                stored = next_step
                next_t = place_of(tl.minimum(p + 1, last - 1), tokens, rows, columns, REVERSE)
                next_x, next_step = row_of(x, x_row, step, step_row, next_t, inside)
                d, raw = step_of(stored, bias_E, inside, bias is not None, SOFTPLUS == "take")
                du = d * u
                begins = starts_at(sequence, p, tokens, REVERSE)
                new = ()
                for n in tl.static_range(N):
                    B, C = load_pair(BC + t * BC_row + n)
                    new = new + (tl.exp2(d * rates_N[n]) * unless(begins, h[n], sequence is not None) + du * B,)
                h = new
        tl.debug_barrier()  # what is read from scratch below was written above

        for j in range(0, spans):
            span = spans - 1 - j
            # Behind the last token of the segment its row is read again, with the step 0 and without a gradient.
            steps = ()
            inputs = ()
            grads = ()
            begins = ()
            pairs = ()
            over_B = ()  # sums over n of dh B, and of the gradient of the decay's exponent times A
            over_A = ()
            for s in tl.static_range(SPAN):
                p = begin + span * SPAN + s
                t = place_of(tl.minimum(p, last - 1), tokens, rows, columns, REVERSE)
                here = e < tl.where(p < last, behind, 0)
                u = tl.load(x + t * x_row, mask=inside, other=0.0).to(tl.float32)
                stored = tl.load(step + t * step_row, mask=here, other=0.0)
                d, raw = step_of(stored, bias_E, here, bias is not None, SOFTPLUS == "take")
                steps = steps + (d,)
                inputs = inputs + (d * u,)
                grads = grads + (tl.load(grad + row + t * width, mask=here, other=0.0).to(tl.float32),)
                pairs = pairs + (BC + t * BC_row,)
                begins = begins + (starts_at(sequence, tl.minimum(p, last - 1), tokens, REVERSE),)
                over_B = over_B + (tl.zeros([CHANNELS], tl.float32),)
                over_A = over_A + (tl.zeros([CHANNELS], tl.float32),)

            # Where the gradients of B and C go, (SPAN, 2) of each n.
            i_P2 = tl.arange(0, 2 * SPAN)
            p_P2 = begin + span * SPAN + i_P2 // 2
            places = place_of(p_P2, tokens, rows, columns, REVERSE) * (2 * N) + i_P2 % 2
            new_dh = ()
            for n in tl.static_range(N):
                h_n = tl.load(scratch + (span * N + n) * CHANNELS)
                rate = tl.load(rates + n * CHANNELS)
                Bs = ()
                Cs = ()
                decays = ()
                befores = ()  # the states before each token of the span, and behind each
                behinds = ()
                for s in tl.static_range(SPAN):
                    B, C = load_pair(pairs[s] + n)
                    Bs = Bs + (B,)
                    Cs = Cs + (C,)
                    decays = decays + (tl.exp2(steps[s] * rate),)
                    befores = befores + (unless(begins[s], h_n, sequence is not None),)
                    h_n = decays[s] * befores[s] + inputs[s] * B
                    behinds = behinds + (h_n,)

                dh_n = dh[n]
                dA_n = tl.load(sums + n * CHANNELS)
                of_BC = ()
                new_over_B = ()
                new_over_A = ()
                for back in tl.static_range(1, SPAN + 1):
                    dh_n += grads[SPAN - back] * Cs[SPAN - back]
                    of_BC = (dh_n * inputs[SPAN - back], grads[SPAN - back] * behinds[SPAN - back]) + of_BC
                    new_over_B = (over_B[SPAN - back] + dh_n * Bs[SPAN - back],) + new_over_B
                    dh_n = unless(begins[SPAN - back], dh_n * decays[SPAN - back], sequence is not None)
                    of_exponent = dh_n * befores[SPAN - back]
                    dA_n += of_exponent * steps[SPAN - back]
                    new_over_A = (over_A[SPAN - back] + of_exponent * rate,) + new_over_A
                tl.store(dBC + places + 2 * n, lane_sums(of_BC, 2 * SPAN), mask=p_P2 < last)
                over_B = new_over_B
                over_A = new_over_A
                new_dh = new_dh + (dh_n,)
                tl.store(sums + n * CHANNELS, dA_n)
            dh = new_dh
            tl.debug_barrier()  # nothing says that a lane gets from `sums` only what it put there

            for s in tl.static_range(SPAN):
                p = begin + span * SPAN + s
                t = place_of(tl.minimum(p, last - 1), tokens, rows, columns, REVERSE)
                here = e < tl.where(p < last, behind, 0)
                u = tl.load(x + t * x_row, mask=inside, other=0.0).to(tl.float32)
                tl.store(dx + row + t * width, over_B[s] * steps[s] + skip * grads[s], mask=here)
                dD_E += grads[s] * u
                dstep_E = over_B[s] * u + over_A[s] * LN2
                if SOFTPLUS == "taken":
                    dstep_E *= slope_of_softplus(steps[s])
                if SOFTPLUS == "take":
                    stored = tl.load(step + t * step_row, mask=inside, other=0.0)
                    d, raw = step_of(stored, bias_E, inside, bias is not None, SOFTPLUS == "take")
                    dstep_E *= sigmoid(raw)
                dbias_E += tl.where(here, dstep_E, 0.0)
                tl.store(dstep + row + t * width, dstep_E, mask=here)

    for k in range(0, N):
        tl.store(dA + (program * width + e) * N + k, tl.load(sums + k * CHANNELS), mask=inside)
    if dinitial is not None:
        for n in tl.static_range(N):
            tl.store(dinitial + (b * width + e) * N + n, dh[n], mask=inside & (segment == 0))
    if dD is not None:
        tl.store(dD + program * width + e, dD_E, mask=inside)
    if dbias is not None:
        tl.store(dbias + program * width + e, dbias_E, mask=inside)
