"""The cross scan: the reference against four walks written out here, the backends against the reference."""

import pytest
import torch

from longvision.ops import cross_scan
from support.scan_cases import needs_compiler

pytestmark = pytest.mark.usefixtures("poison")

CPU = pytest.param("cpu", marks=needs_compiler)
FASTER = (CPU, "chunked")


@pytest.fixture
def backend(request, monkeypatch):
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", request.param)
    return request.param


each_backend = pytest.mark.parametrize("backend", [*FASTER, "reference"], indirect=True)


def make(batch, grid, width, states, dtype=torch.float64, D=True, bias=True, softplus=True):
    generator = torch.Generator().manual_seed(0)
    tokens = grid[0] * grid[1]

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    delta = normal(batch, tokens, 4, width) - 1
    tensors = {
        "x": normal(batch, tokens, width),
        "delta": delta if softplus else 0.1 + delta.sigmoid(),
        "A": -0.1 - 1.9 * normal(4, width, states).sigmoid(),
        "B": normal(batch, tokens, 4, states),
        "C": normal(batch, tokens, 4, states),
        "D": normal(4, width) if D else None,
        "delta_bias": (normal(4, width) if softplus else normal(4, width).sigmoid()) if bias else None,
    }
    return {name: None if t is None else t.to(dtype) for name, t in tensors.items()}


def walked(x, delta, A, B, C, D, bias, grid, softplus):
    """A pixel after the other, in four ways."""
    rows, columns = grid
    by_rows = [(row, column) for row in range(rows) for column in range(columns)]
    by_columns = [(row, column) for column in range(columns) for row in range(rows)]
    y = torch.zeros_like(x)
    for k, way in enumerate((by_rows, by_columns, by_rows[::-1], by_columns[::-1])):
        h = x.new_zeros(x.shape[0], x.shape[2], A.shape[2])
        for row, column in way:
            t = row * columns + column
            step = delta[:, t, k] if bias is None else delta[:, t, k] + bias[k]
            step = torch.nn.functional.softplus(step) if softplus else step
            h = torch.exp(step[..., None] * A[k]) * h + (step * x[:, t])[..., None] * B[:, t, k, None]
            y[:, t] += (h * C[:, t, k, None]).sum(-1) + (0 if D is None else D[k] * x[:, t])
    return y


@each_backend
@pytest.mark.parametrize("grid", [(1, 5), (2, 3), (4, 2)], ids=str)
@pytest.mark.parametrize("present", [True, False])
def test_four_walks_summed(backend, grid, present):
    tensors = make(2, grid, 3, 2, D=present, bias=present, softplus=present)
    y = cross_scan(*tensors.values(), grid, present)
    torch.testing.assert_close(y, walked(*tensors.values(), grid, present), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name, shape, expected", [
    ("delta", (2, 6, 3, 5), r"delta of shape \(2, 6, 3, 5\), expected \(2, 6, 4, 5\)"),
    ("A", (4, 5), r"A of shape \(4, 5\), expected \(4, 5, states\)"),
    ("A", (3, 5, 2), r"A of shape \(3, 5, 2\), expected \(4, 5, 2\)"),
    ("B", (2, 6, 2), r"B of shape \(2, 6, 2\), expected \(2, 6, 4, 2\)"),
    ("C", (2, 6, 4, 3), r"C of shape \(2, 6, 4, 3\), expected \(2, 6, 4, 2\)"),
    ("D", (5,), r"D of shape \(5,\), expected \(4, 5\)"),
    ("delta_bias", (4, 1), r"delta_bias of shape \(4, 1\), expected \(4, 5\)"),
])  # fmt: skip
def test_a_wrong_shape_is_named(name, shape, expected):
    with pytest.raises(ValueError, match=f"^cross_scan got {expected}"):
        cross_scan(*(make(2, (2, 3), 5, 2) | {name: torch.ones(shape)}).values(), (2, 3))


@pytest.mark.parametrize("grid", [(2, 2), (0, 6), (-2, -3)])
def test_a_grid_of_other_pixels(grid):
    with pytest.raises(ValueError, match=rf"cross_scan got grid \({grid[0]}, {grid[1]}\) and 6 tokens"):
        cross_scan(*make(2, (2, 3), 5, 2).values(), grid)


def test_no_tensor():
    for name in ("x", "A", "B"):
        with pytest.raises(TypeError, match=f"cross_scan got {name} of type list, expected a torch"):
            cross_scan(*(make(1, (2, 3), 5, 2) | {name: [1.0]}).values(), (2, 3))
