"""What kernels that go from token to token ask: where a token lies, where sequences begin, a number a channel."""

import triton
import triton.language as tl


@triton.jit
def token_at(p, tokens, REVERSE: tl.constexpr):
    """Where the p-th token in the order of the scan lies."""
    return tokens - 1 - p if REVERSE else p


@triton.jit
def starts_at(sequence, p, tokens, REVERSE: tl.constexpr):
    """Whether a packed sequence begins with the p-th token of the scan; False where `sequence` is None."""
    if sequence is None:
        return False
    else:
        own = tl.load(sequence + token_at(p, tokens, REVERSE))
        return own != tl.load(sequence + token_at(p - 1, tokens, REVERSE), mask=p > 0, other=-1)


@triton.jit
def of_channels(vector, e, inside):
    """Its numbers for the channels e; zeros, if it is None."""
    if vector is None:
        return tl.zeros(e.shape, tl.float32)
    else:
        return tl.load(vector + e, mask=inside, other=0.0).to(tl.float32)
