"""What the kernels compute with: float32 throughout, written so that nothing small is lost and nothing overflows."""

import os

import triton
import triton.language as tl

# Triton's interpreter takes bfloat16 in a matmul for integers.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), from an exponential that is at most 1.

    The reciprocal of d = 1 + e, between 1 and 2, by Newton's iteration: special functions are what a scan waits for,
    and a division is another one. It starts from the polynomial (1 + T3(2 d - 3) / 99) / d, off by 1/99 at most, so
    that two steps give 1e-8.
    """
    e = tl.exp2(tl.abs(x) * -LOG2E)
    d = 1.0 + e
    r = (d * (32 / 99) - 144 / 99) * d + 210 / 99
    r += r * (1.0 - d * r)
    r += r * (1.0 - d * r)
    return tl.where(x < 0, e, 1.0) * r


@triton.jit
def softplus(x):
    """max(x, 0) + log(1 + exp(-|x|)), good to a few roundings even where it is tiny.

    log(1 + e) / e on [0, 1] is the polynomial of degree 8 of least relative error, 3.0e-8 (Remez): one special function
    less than a logarithm, and no digits lost beside the one.
    """
    e = tl.exp2(tl.abs(x) * -LOG2E)
    p = e * 0.005232694303 - 0.02950523893
    p = p * e + 0.07822595212
    p = p * e - 0.1366324581
    p = p * e + 0.1910600677
    p = p * e - 0.2484298222
    p = p * e + 0.3331909681
    p = p * e - 0.4999949314
    p = p * e + 0.9999999699
    return tl.maximum(x, 0.0) + e * p


@triton.jit
def slope_of_softplus(y):
    """The slope of softplus where it is y: 1 - exp(-y), by its series where the difference would lose digits."""
    series = 1.0 - y / 8 * (1.0 - y / 9)
    series = 1.0 - y / 6 * (1.0 - y / 7 * series)
    series = 1.0 - y / 4 * (1.0 - y / 5 * series)
    series = 1.0 - y / 2 * (1.0 - y / 3 * series)
    return tl.where(y < 0.7, y * series, 1.0 - tl.exp2(y * -LOG2E))


@triton.jit
def load_pair(pointer):
    """Two float32 that lie side by side, by one load."""
    both = tl.load(pointer)
    return _float_of(both), _float_of(both >> 32)


@triton.jit
def _float_of(bits):
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def lane_sums(values, COUNT: tl.constexpr):
    """Sums of COUNT vectors, as one vector of COUNT: for programs of one warp.

    A sum over 32 lanes takes five rounds in which every lane computes the same. Here two vectors at a time become one,
    whose even lanes go on with the first and whose odd lanes go on with the second, then with four in their places, and
    so on: 8 vectors take 13 shuffles, not 40.
    """
    lane = tl.arange(0, 32)
    folded = ()
    for i in tl.static_range(COUNT):
        folded = folded + (tl.sum(tl.reshape(values[i], [32, values[i].shape[0] // 32]), axis=1),)
    for level in tl.static_range(5):
        if COUNT >> (level + 1) > 0:
            new = ()
            for i in tl.static_range(COUNT >> (level + 1)):
                second = (lane & (1 << level)) != 0
                given = tl.where(second, folded[2 * i], folded[2 * i + 1])
                own = tl.where(second, folded[2 * i + 1], folded[2 * i])
                new = new + (own + tl.gather(given, lane ^ (1 << level), axis=0),)
            folded = new
    return tl.sum(tl.reshape(folded[0], [32 // COUNT, COUNT]), axis=0)


@triton.jit
def matmul(left, right, total):
    """total + left times right; of float32 factors no digit is dropped."""
    if INTERPRETED:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")
