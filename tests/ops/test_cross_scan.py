"""The cross scan: the reference against four walks written out here, the backends against the reference."""

from functools import partial

import pytest
import torch

from longvision.ops import cross_scan, selective_scan
from longvision.ops.cross_scan import op
from longvision.ops.cross_scan.reference import cross_scan_reference
from longvision.ops.selective_scan.parallel import selective_scan_parallel
from support.scan_cases import SUMS, TOLERANCE, assert_close, assert_identical, compiler_exists, needs_compiler

pytestmark = pytest.mark.usefixtures("poison")

NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias")
OVER_TOKENS = ("A", "D", "delta_bias")
CPU = pytest.param("cpu", marks=needs_compiler)
FASTER = (CPU, "chunked")
GRIDS = [(1, 1), (1, 7), (7, 1), (2, 3), (13, 11), (3, 70), (70, 3)]


@pytest.fixture
def backend(request, monkeypatch):
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", request.param)
    return request.param


each_backend = pytest.mark.parametrize("backend", [*FASTER, "reference"], indirect=True)
each_faster = pytest.mark.parametrize("backend", FASTER, indirect=True)


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


def value_and_grads(function, tensors, grad, grid, softplus=True):
    leaves = {name: None if t is None else t.detach().clone().requires_grad_() for name, t in tensors.items()}
    y = function(*leaves.values(), grid, softplus)
    y.backward(grad.to(y.dtype))
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items() if leaf is not None}}


def check(tensors, grid, softplus=True):
    grad = torch.randn_like(tensors["x"])
    got = value_and_grads(cross_scan, tensors, grad, grid, softplus)
    double = {name: None if t is None else t.double() for name, t in tensors.items()}
    truth = value_and_grads(cross_scan_reference, double, grad.double(), grid, softplus)
    assert got.keys() == truth.keys()
    for name, expected in truth.items():
        assert got[name].shape == expected.shape and got[name].dtype == tensors["x" if name == "y" else name].dtype
        error = (got[name].double() - expected).norm() / (expected.norm() + 1e-30)
        dtype = got[name].dtype
        factor = SUMS if name in OVER_TOKENS and dtype != torch.bfloat16 else 1
        assert error <= factor * TOLERANCE[dtype], f"{name}: {error:.1e}"


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


@each_faster
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grids(backend, dtype, grid):
    check(make(2, grid, 5, 3, dtype), grid)


@each_faster
@pytest.mark.parametrize("width, states", [(1, 1), (16, 1), (19, 1), (37, 2), (72, 1), (66, 5), (40, 16)])
def test_widths_and_states(backend, width, states):
    check(make(2, (5, 14), width, states, torch.float32), (5, 14))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", [CPU], indirect=True)
def test_widths_in_other_dtypes(backend, dtype):
    check(make(1, (9, 8), 37, 1, dtype), (9, 8))


@each_faster
@pytest.mark.parametrize("D, bias, softplus", [(False, True, True), (True, False, True), (True, True, False)])
def test_optional_arguments(backend, D, bias, softplus):
    check(make(1, (4, 5), 6, 2, D=D, bias=bias, softplus=softplus), (4, 5), softplus)


@each_faster
def test_half_precision_is_summed_in_float32(backend):
    """Rounded once, not for each direction."""
    tensors = make(1, (6, 7), 19, 4, torch.bfloat16)
    truth = cross_scan_reference(*(t.double() for t in tensors.values()), (6, 7))
    error = (cross_scan(*tensors.values(), (6, 7)).double() - truth).abs()
    assert (error <= 2**-8 * truth.abs() + 3e-6 * truth.abs().max()).all()


@each_faster
def test_gradcheck(backend):
    leaves = [t.requires_grad_() for t in make(1, (3, 2), 2, 1).values()]
    assert torch.autograd.gradcheck(partial(cross_scan, grid=(3, 2)), leaves, fast_mode=True)


@pytest.mark.parametrize("backend", [CPU], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_give_the_same_bits(backend, threads, dtype):
    tensors, grad = make(2, (13, 11), 150, 1, dtype), torch.randn(2, 143, 150)
    threads(1)
    one = value_and_grads(cross_scan, tensors, grad, (13, 11))
    for count in (2, 3):
        threads(count)
        assert_identical(value_and_grads(cross_scan, tensors, grad, (13, 11)), one)


@each_faster
def test_inputs_of_any_strides(backend):
    """As projections give them: direction before pixels, pixels contiguous, B and C in one."""
    tensors, grad = make(2, (5, 7), 6, 3, torch.float32), torch.randn(2, 35, 6)
    truth = value_and_grads(cross_scan, tensors, grad, (5, 7))
    BC = torch.cat([tensors["B"], tensors["C"]], -1)
    strided = tensors | {
        "x": tensors["x"].mT.contiguous().mT,
        "delta": tensors["delta"].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "B": BC[..., :3],
        "C": BC[..., 3:],
    }
    leaves = {name: t.detach().requires_grad_() for name, t in strided.items()}
    y = cross_scan(*leaves.values(), (5, 7))
    y.backward(grad.mT.contiguous().mT)
    got = {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}
    assert_close(got, truth, 0 if backend == "cpu" else 1e-6)  # torch sums in an order that depends on strides


@each_faster
def test_no_images(backend):
    tensors = {name: t if name in OVER_TOKENS else t[:0] for name, t in make(1, (2, 3), 5, 2).items()}
    got = value_and_grads(cross_scan, tensors, torch.ones(0, 6, 5), (2, 3))
    assert got["y"].shape == (0, 6, 5)
    assert all(got[name].shape == t.shape and not got[name].any() for name, t in tensors.items())


@each_faster
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_expanded_channels(backend, dtype):
    """One step for all channels, as rows and columns read it; a sum over the channels, whose gradient is expanded."""
    tensors, of_token = make(2, (5, 7), 19, 3, dtype), torch.randn(2, 35).to(dtype)
    tensors |= {name: tensors[name][..., :1] for name in ("x", "delta")}

    def expanded(function, tensors):
        leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
        x, delta, *rest = leaves.values()
        delta = delta.transpose(1, 2).contiguous().transpose(1, 2)  # as a projection gives it
        y = function(x.expand(2, 35, 19), delta.expand(2, 35, 4, 19), *rest, (5, 7))
        (y.sum(-1) * of_token).sum().backward()
        return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}

    truth = expanded(cross_scan_reference, {name: t.double() for name, t in tensors.items()})
    assert_close(expanded(cross_scan, tensors), truth, 100 * TOLERANCE[dtype])  # those of D cancel


def _parallel(x, delta, A, B, C, D, z, *options):
    assert z is None
    return selective_scan_parallel(x, delta, A, B, C, D, *options)


@pytest.mark.parametrize("scan", [selective_scan, _parallel])
def test_the_reference_on_another_scan(scan):
    """As graph tools need it."""
    tensors, grad = make(2, (6, 5), 7, 2), torch.randn(2, 30, 7, dtype=torch.float64)
    truth = value_and_grads(cross_scan_reference, tensors, grad, (6, 5))
    got = value_and_grads(partial(cross_scan_reference, scan=scan), tensors, grad, (6, 5))
    assert_close(got, truth, 1e-12)


# One node


@pytest.mark.parametrize("name", ["cpu", "chunked"])
@pytest.mark.parametrize("options", [{}, {"D": False, "bias": False}, {"dtype": torch.bfloat16}], ids=str)
def test_opcheck(name, options):
    if name == "cpu" and not compiler_exists():
        pytest.skip("no C++ compiler")
    arguments = *make(1, (3, 4), 5, 2, **({"dtype": torch.float32} | options)).values(), (3, 4), True, name, True
    leaves = [a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    torch.library.opcheck(torch.ops.longvision.cross_scan, leaves)
    y, states = torch.ops.longvision.cross_scan(*arguments)
    torch.library.opcheck(torch.ops.longvision.cross_scan_backward, (torch.ones_like(y), states, *arguments[:-1]))


class Cross(torch.nn.Module):
    def forward(self, *tensors):
        return cross_scan(*tensors, (3, 4))


def test_compile_and_export_see_one_node():
    arguments = tuple(make(1, (3, 4), 5, 2, torch.float32).values())
    truth, counts = Cross()(*arguments), []

    def counting(module, _inputs):
        counts.append(sum("cross_scan" in str(node.target) for node in module.graph.nodes))
        return module.forward

    torch._dynamo.reset()
    assert torch.equal(torch.compile(Cross(), fullgraph=True, backend=counting)(*arguments), truth)
    assert counts == [1]
    program = torch.export.export(Cross(), arguments)
    assert sum("cross_scan" in str(node.target) for node in program.graph.nodes) == 1
    assert torch.equal(program.module()(*arguments), truth)


def test_compiled_training_step_equals_eager():
    tensors = make(1, (3, 4), 5, 2, torch.float32)
    grad = torch.randn(1, 12, 5)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *of: cross_scan(*of), fullgraph=True, backend="aot_eager")
    eager = value_and_grads(cross_scan, tensors, grad, (3, 4))
    assert_identical(value_and_grads(compiled, tensors, grad, (3, 4)), eager)


@each_faster
def test_no_states_where_there_is_no_backward(monkeypatch, backend):
    saved, original = [], op.MODULES[backend].forward
    monkeypatch.setattr(op.MODULES[backend], "forward", lambda *given: (saved.append(given[1]), original(*given))[1])
    cross_scan(*make(1, (3, 4), 5, 2).values(), (3, 4))
    assert saved == [None]


# Mistakes


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
