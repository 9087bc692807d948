"""What every kernel that walks along the tokens asks: where the p-th token lies, and where sequences begin."""

import triton
import triton.language as tl


@triton.jit
def token_at(p, tokens, REVERSE: tl.constexpr):
    """Where the p-th token of the walk lies."""
    return tokens - 1 - p if REVERSE else p


@triton.jit
def starts_at(sequence, p, tokens, REVERSE: tl.constexpr):
    """Whether a packed sequence begins with the p-th token of the walk."""
    own = tl.load(sequence + token_at(p, tokens, REVERSE))
    return own != tl.load(sequence + token_at(p - 1, tokens, REVERSE), mask=p > 0, other=-1)
