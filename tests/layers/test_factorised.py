"""An embedding for each row plus one for each column, written out entry by entry."""

import math

import pytest
import torch

from longvision.errors import UserError
from longvision.layers import ClassTokens, FactorisedPositions, factorised_on_grid
from longvision.layers.factorised import FACTORISED

EVERY = pytest.mark.parametrize("kind", FACTORISED)
DIM = 8


def positions(kind, grid=(4, 6)):
    module = FactorisedPositions(kind, DIM, grid).double()
    module.reset_parameters()
    return module


def entry(module, axis, i, side):
    """(D,): of row or column i of `side`, by the words of the docstring."""
    place = (i + 0.5) / side if module.fractional else i
    if module.function == "learned":
        table = (module.rows, module.columns)[axis]
        if not module.fractional and side <= len(table):
            return table[i]
        at = min(max((i + 0.5) * len(table) / side - 0.5, 0), len(table) - 1)
        low = math.floor(at)
        return table[low] * (1 - at + low) + table[min(low + 1, len(table) - 1)] * (at - low)
    if module.function == "sinusoidal":
        angles = [
            place * (2 * math.pi if module.fractional else 1) / 10_000 ** (k / (DIM // 4)) for k in range(DIM // 4)
        ]
        half = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        return torch.tensor(half + [0.0] * (DIM // 2) if axis == 0 else [0.0] * (DIM // 2) + half)
    angles = 2 * math.pi * place * module.frequencies[axis]
    return torch.cat([angles.sin(), angles.cos()]) @ module.proj[axis]


def truth(module, grid):
    """(rows * columns, D)"""
    return torch.stack(
        [entry(module, 0, i, grid[0]) + entry(module, 1, j, grid[1]) for i in range(grid[0]) for j in range(grid[1])]
    )


@EVERY
@pytest.mark.parametrize("grid", [(4, 6), (2, 3), (4, 9), (7, 1), (1, 1)])
def test_row_plus_column(kind, grid):
    module = positions(kind)
    got = factorised_on_grid(module, grid, ClassTokens("none"), torch.zeros(1, 1, DIM))
    # places are float32: up to 7 periods of a random frequency, 2**-24 each
    torch.testing.assert_close(got[0].double(), truth(module, grid).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["factorised_learned", "fractional_learned"])
def test_a_table_as_long_as_the_side_is_read_bit_for_bit(kind):
    module = positions(kind)
    assert torch.equal(module.along(0, [4], "cpu"), module.rows)
    assert torch.equal(module.along(1, [6], "cpu"), module.columns)


@EVERY
def test_fractions_see_the_image_s_size_and_numbers_do_not(kind):
    module = positions(kind)
    of_two, of_three = (module.along(0, [side], torch.device("cpu"))[0] for side in (2, 3))
    assert torch.equal(of_two, of_three) == kind.startswith("factorised")


@EVERY
def test_packed_is_each_by_itself(kind):
    """Of some patches of each image, and every gradient."""
    module, grids = positions(kind), [(2, 3), (4, 6), (5, 2), (1, 7), (2, 3)]
    numbers = [[0, 4, 5], list(range(24)), [9], [0, 1, 6], [1]]
    packed = module.packed(grids, torch.tensor([n for own in numbers for n in own]), [len(own) for own in numbers])
    alone = torch.cat([truth(module, grid)[own] for grid, own in zip(grids, numbers)])
    torch.testing.assert_close(packed.double(), alone.double(), rtol=0, atol=1e-5)
    weights = torch.randn_like(alone).double()
    if not list(module.parameters()):
        return
    got = torch.autograd.grad((packed * weights).sum(), module.parameters())
    expected = torch.autograd.grad((alone * weights).sum(), module.parameters())
    for found, gradient in zip(got, expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-4)  # frequencies: times 2 pi and seven places


@EVERY
def test_class_tokens_have_none(kind):
    got = factorised_on_grid(positions(kind), (2, 3), ClassTokens("middle"), torch.zeros(1, 1, DIM))
    assert got.shape == (1, 7, DIM) and (got[:, 3] == 0).all() and (got[:, [0, 1, 2, 4, 5, 6]] != 0).any(-1).all()


@pytest.mark.parametrize("kind", ["factorised_learned", "fractional_learned"])
def test_resized_gives_what_it_gave(kind):
    module = positions(kind)
    before = module.along(0, [9], "cpu").detach(), module.along(1, [3], "cpu").detach()
    module.rows.requires_grad_(False)
    module.resize((9, 3))
    assert torch.equal(module.rows, before[0]) and torch.equal(module.columns, before[1])
    assert not module.rows.requires_grad and module.columns.requires_grad


def test_parameters_of_low_precision_are_read_in_float32():
    for kind in FACTORISED:
        module = positions(kind)
        assert module.bfloat16().along(0, [5], torch.device("cpu")).dtype == torch.float32


@pytest.mark.parametrize("kind", [kind for kind in FACTORISED if not kind.endswith("learned")])
def test_a_width_that_sines_do_not_divide(kind):
    with pytest.raises(UserError, match="embed_dim 10"):
        FactorisedPositions(kind, 10, (2, 2))
