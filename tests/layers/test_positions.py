"""Position embeddings on another grid: class rows stay, the rest is a map that is resized."""

import pytest
import torch

from longvision.layers import ClassTokens, resample_pos_embed
from longvision.layers.tokens import CLASS_TOKENS

GRIDS = [
    ((4, 4), (7, 7)),
    ((4, 4), (2, 2)),
    ((7, 7), (4, 4)),
    ((3, 5), (6, 4)),
    ((4, 4), (1, 1)),
    ((4, 9), (6, 6)),
    ((14, 14), (3, 1)),
]
ROWS = {"none": lambda m: [], "head": lambda m: [0], "middle": lambda m: [m // 2], "double": lambda m: [0, m + 1]}


def bicubic(old, new):
    """(new, old) weights that resize a row: Keys' cubic (a = -1/2), widened by the scale where it shrinks, sums of one.

    Written out: torch's interpolation of a contiguous tensor is wrong where the width becomes 1 (2.15, on a CPU).
    """
    scale = old / new
    widened = max(scale, 1.0)
    middle = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    d = ((torch.arange(old, dtype=torch.float64) + 0.5)[None] - middle[:, None]).abs() / widened
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    weights = torch.where(d < 1, near, torch.where(d < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)


def class_rows(pos_1MD, kind, patches):
    return pos_1MD[:, ROWS[kind](patches)]


def patch_rows(pos_1MD, kind, patches):
    keep = [i for i in range(pos_1MD.shape[1]) if i not in ROWS[kind](patches)]
    return pos_1MD[:, keep]


@pytest.mark.parametrize("kind", CLASS_TOKENS)
@pytest.mark.parametrize("old, new", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_class_rows_stay_and_the_grid_is_resized(kind, old, new, dtype):
    tokens = ClassTokens(kind)
    before, after = old[0] * old[1], new[0] * new[1]
    pos = torch.randn(1, before + tokens.count, 6, dtype=dtype)
    got = resample_pos_embed(pos, old, new, tokens)
    assert got.shape == (1, after + tokens.count, 6)
    assert torch.equal(class_rows(got, kind, after), class_rows(pos, kind, before))
    image = patch_rows(pos, kind, before).double().view(*old, 6)
    image = torch.einsum("yh,xw,hwd->yxd", bicubic(old[0], new[0]), bicubic(old[1], new[1]), image)
    truth = image.reshape(1, after, 6)
    # Of float64 positions too, timm resamples in float32: some twenty roundings of values up to four.
    torch.testing.assert_close(patch_rows(got, kind, after).double(), truth, rtol=0, atol=5e-6)


@pytest.mark.parametrize("kind", CLASS_TOKENS)
def test_the_same_grid_changes_nothing(kind):
    tokens = ClassTokens(kind)
    pos = torch.randn(1, 15 + tokens.count, 6)
    assert torch.equal(resample_pos_embed(pos, (3, 5), (3, 5), tokens), pos)


def test_as_many_patches_in_another_shape_are_another_grid():
    tokens = ClassTokens("middle")
    pos = torch.randn(1, 37, 6)
    assert not torch.allclose(resample_pos_embed(pos, (4, 9), (6, 6), tokens), pos)


@pytest.mark.parametrize("old, new", GRIDS)
def test_a_constant_stays_constant(old, new):
    tokens = ClassTokens("middle")
    pos = torch.full((1, old[0] * old[1] + 1, 6), 0.7)
    # a bicubic filter's weights sum to one, to float32's rounding
    torch.testing.assert_close(resample_pos_embed(pos, old, new, tokens), torch.full((1, new[0] * new[1] + 1, 6), 0.7))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_keeps_the_dtype_and_passes_gradients(dtype):
    pos = torch.randn(1, 17, 6, dtype=dtype, requires_grad=True)
    got = resample_pos_embed(pos, (4, 4), (6, 6), ClassTokens("middle"))
    assert got.dtype == dtype
    got.sum().backward()
    assert (pos.grad[0] != 0).all()
