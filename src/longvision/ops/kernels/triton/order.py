"""What kernels that go from token to token ask: where a token lies, where sequences begin, a number a channel."""

import triton
import triton.language as tl


@triton.jit
def token_at(p, tokens, REVERSE: tl.constexpr):
    """Where the p-th token in the order of the scan lies."""
    return tokens - 1 - p if REVERSE else p


@triton.jit
def place_of(p, tokens, rows, columns, REVERSE: tl.constexpr):
    """The same; if `rows` is not None, of the pixels of a grid, which are taken column by column."""
    i = token_at(p, tokens, REVERSE)
    if rows is None:
        return i
    else:
        column = i // rows
        return (i - column * rows) * columns + column


@triton.jit
def starts_at(sequence, p, tokens, REVERSE: tl.constexpr):
    """Whether a packed sequence begins with the p-th token of the scan; False where `sequence` is None. Packed
    sequences have no grid."""
    if sequence is None:
        return False
    else:
        own = tl.load(sequence + token_at(p, tokens, REVERSE))
        return own != tl.load(sequence + token_at(p - 1, tokens, REVERSE), mask=p > 0, other=-1)


@triton.jit
def channels_of(tile, width, group_width, CHANNELS: tl.constexpr):
    """The channels of a tile, which of them there are, and which group of channels they are of, all with the same B and
    C; where `group_width` is None, B and C are those of all channels."""
    if group_width is None:
        e = tile * CHANNELS + tl.arange(0, CHANNELS)
        return e, e < width, 0
    else:
        tiles = tl.cdiv(group_width, CHANNELS)
        own = tile // tiles
        e = own * group_width + (tile - own * tiles) * CHANNELS + tl.arange(0, CHANNELS)
        return e, e < (own + 1) * group_width, own


@triton.jit
def of_channels(vector, e, inside):
    """Its numbers for the channels e; zeros, if it is None."""
    if vector is None:
        return tl.zeros(e.shape, tl.float32)
    else:
        return tl.load(vector + e, mask=inside, other=0.0).to(tl.float32)
