"""The scan from a state to a state, with groups of B and C or constant ones, and by columns: the reference against what
the words mean, the backends against the reference."""

import pytest
import torch

from longvision.ops import selective_scan
from longvision.ops.selective_scan.inputs import by_columns, by_rows
from support.scan_cases import (
    BACKENDS,
    FASTER,
    NAMES,
    PER_TOKEN,
    assert_close,
    assert_identical,
    assert_true,
    distance,
    make,
    needs_compiler,
    scan,
    value_and_grads,
)

pytestmark = pytest.mark.usefixtures("poison")

DTYPES = {"cpu": (torch.float64, torch.float32, torch.bfloat16), "chunked": (torch.float64, torch.float32)}
EACH = [
    pytest.param(name, dtype, marks=needs_compiler if name == "cpu" else (), id=f"{name}-{dtype}")
    for name, dtypes in DTYPES.items()
    for dtype in dtypes
]
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forth", "back"])
GRIDS = [(1, 7), (7, 1), (2, 3), (13, 11), (70, 3), (3, 70), (8, 16)]


def normal(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def weights_of(kind, batch, tokens, width, states, dtype=torch.float64, seed=2):
    """B or C: "token", "constant", or so many groups."""
    shape = {"token": (batch, tokens, states), "constant": (width, states)}.get(kind)
    return normal(*(shape or (batch, tokens, kind, states)), dtype=dtype, seed=seed)


def case(batch, tokens, width, states, dtype=torch.float64, B="token", C="token", initial=False, **options):
    tensors = make(batch, tokens, width, states, dtype, **options)
    sizes = batch, tokens, width, states, dtype
    tensors |= {"B": weights_of(B, *sizes), "C": weights_of(C, *sizes, seed=3)}
    real = torch.promote_types(dtype, torch.float32)
    return tensors | ({"initial_state": normal(batch, width, states, dtype=real)} if initial else {})


def check(tensors, backend, last=False, **options):
    grad = torch.randn_like(tensors["x"])
    of_last = len(tensors["x"]), *tensors["A"].shape
    grad_last = normal(*of_last).to(torch.promote_types(grad.dtype, torch.float32)) if last else None
    options = {"delta_softplus": True, **options}
    got = value_and_grads(tensors, backend, grad, grad_last, **options)
    assert_true(tensors, grad, got, grad_last, **options)


# What the words mean


@pytest.mark.parametrize("backend", BACKENDS)
@both_ways
@pytest.mark.parametrize("cut", [1, 16, 19])
def test_the_last_state_of_one_part_begins_the_next(backend, reverse, cut):
    tensors = make(2, 20, 3, 4)
    whole = scan(tensors, backend, delta_softplus=True, reverse=reverse)
    parts = [slice(cut, None), slice(cut)] if reverse else [slice(cut), slice(cut, None)]
    of = [{name: t[:, part] if name in PER_TOKEN else t for name, t in tensors.items()} for part in parts]
    options = {"delta_softplus": True, "reverse": reverse, "return_last_state": True}
    first, state = scan(of[0], backend, **options)
    second, _ = scan(of[1] | {"initial_state": state}, backend, **options)
    assert distance(torch.cat([second, first] if reverse else [first, second], 1), whole) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_by_hand(backend):
    """Decay 1/2 a token, from 8: 4 + 1, 2.5 + 2, 2.25 + 3; back: 4 + 3, 3.5 + 2, 2.75 + 1."""
    one = torch.ones(1, 3, 1, dtype=torch.float64)
    x, A = torch.tensor([1.0, 2.0, 3.0]).double().view(1, 3, 1), -torch.full((1, 1), 2.0).double().log()
    for reverse, expected in ((False, [5, 4.5, 5.25]), (True, [3.75, 5.5, 7])):
        options = {"initial_state_BEN": torch.full((1, 1, 1), 8.0), "return_last_state": True, "reverse": reverse}
        y, last = selective_scan(x, one, A, one, one, backend=backend, **options)
        torch.testing.assert_close(y.flatten(), torch.tensor(expected).double(), rtol=1e-14, atol=0)
        assert last.shape == (1, 1, 1) and last.item() == y[0, 0 if reverse else 2, 0].item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_are_scans_of_their_channels(backend):
    """Six channels: B in two groups, C in three."""
    tensors = case(2, 9, 6, 4, B=2, C=3)
    y = scan(tensors, backend, delta_softplus=True)
    for e in range(6):
        own = {name: t[..., e : e + 1] if name in ("x", "delta", "z") else t for name, t in tensors.items()}
        own |= {name: tensors[name][e : e + 1] for name in ("A", "D", "delta_bias")}
        own |= {"B": tensors["B"][:, :, e // 3], "C": tensors["C"][:, :, e // 2]}
        assert distance(y[..., e : e + 1], scan(own, "reference", delta_softplus=True)) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kinds", [("constant", "token"), ("token", "constant"), ("constant", "constant")])
def test_constants_are_the_same_for_every_token(backend, kinds):
    tensors = case(2, 9, 3, 4, B=kinds[0], C=kinds[1])
    y = scan(tensors, backend, delta_softplus=True)
    for e in range(3):
        own = {name: t[..., e : e + 1] if name in ("x", "delta", "z") else t for name, t in tensors.items()}
        own |= {name: tensors[name][e : e + 1] for name in ("A", "D", "delta_bias")}
        own |= {name: t[e].expand(2, 9, 4) for name in ("B", "C") if (t := tensors[name]).ndim == 2}
        assert distance(y[..., e : e + 1], scan(own, "reference", delta_softplus=True)) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
@both_ways
@pytest.mark.parametrize("grid", [(1, 6), (6, 1), (2, 3), (3, 2), (5, 7)], ids=str)
def test_by_columns_is_by_rows_of_the_turned_image(backend, reverse, grid):
    rows, columns = grid
    tensors = make(2, rows * columns, 3, 4)
    y = scan(tensors, backend, delta_softplus=True, reverse=reverse, grid=grid)
    order = [row * columns + column for column in range(columns) for row in range(rows)]
    turned = {name: t[:, order] if name in PER_TOKEN else t for name, t in tensors.items()}
    assert distance(y[:, order], scan(turned, "reference", delta_softplus=True, reverse=reverse)) < 1e-13


def test_columns_and_back():
    pixels = torch.arange(6).view(1, 6, 1)
    turned = by_columns(pixels, (2, 3))
    assert turned.flatten().tolist() == [0, 3, 1, 4, 2, 5] and torch.equal(by_rows(turned, (2, 3)), pixels)


# The backends against the reference: values and every gradient


@pytest.mark.parametrize("backend, dtype", EACH)
@both_ways
@pytest.mark.parametrize("tokens, width, states", [(1, 1, 1), (5, 3, 4), (64, 19, 1), (67, 37, 5)])
def test_from_a_state_to_a_state(backend, dtype, reverse, tokens, width, states):
    check(case(2, tokens, width, states, dtype, initial=True), backend, last=True, reverse=reverse)


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("initial, last", [(True, False), (False, True)])
def test_from_a_state_or_to_one(backend, initial, last):
    check(case(2, 21, 5, 3, initial=initial), backend, last=last)


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("B, grid, names", [
    ("token", None, ("x", "B", "A", "initial_state")), (2, None, ("x", "B", "A", "initial_state")),
    (2, (3, 7), ("x", "delta", "B")), ("token", (3, 7), ("initial_state",)), ("constant", None, ("A",)),
], ids=str)  # fmt: skip
def test_the_last_state_alone(backend, B, grid, names):
    """Nothing comes back from y, and nothing goes to what the state does not depend on; only some need a gradient."""
    tensors = case(2, 21, 6, 3, B=B, initial=True)
    for name in (*names, "z", "D", "C"):
        tensors[name].requires_grad_(name in names)
    grads = []
    for name in (backend, "reference"):
        _, last = scan(tensors, name, delta_softplus=True, return_last_state=True, grid=grid)
        grads.append(torch.autograd.grad(last.square().sum(), [tensors[n] for n in names]))
    assert_close(dict(enumerate(grads[0])), dict(enumerate(grads[1])), 1e-13)


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("name", ["A", "initial_state", "z"])
def test_only_one_needs_a_gradient(backend, name):
    """Of y and of the last state, which does not depend on z."""
    tensors = case(2, 21, 6, 3, B=3, initial=True)
    tensors[name].requires_grad_()
    grads = []
    for own in (backend, "reference"):
        y, last = scan(tensors, own, delta_softplus=True, return_last_state=True)
        (grad,) = torch.autograd.grad(y.square().sum() + last.square().sum(), [tensors[name]])
        grads.append({name: grad})
    assert_close(*grads, 1e-13)


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("grid", [None, (3, 3)])
def test_no_images(backend, grid):
    tensors = {name: t[:0] if t.ndim > 2 else t for name, t in case(1, 9, 6, 3, B=2, initial=True).items()}
    got = value_and_grads(tensors, backend, torch.ones(0, 9, 6), torch.ones(0, 6, 3), delta_softplus=True, grid=grid)
    assert got["y"].shape == (0, 9, 6) and got["last"].shape == (0, 6, 3)
    assert all(got[name].shape == t.shape and not got[name].any() for name, t in tensors.items())


@pytest.mark.parametrize("backend, dtype", EACH)
@pytest.mark.parametrize("tokens, width, states, B, C", [
    (1, 2, 1, 2, 2), (70, 12, 3, 4, 4), (67, 38, 5, 2, "token"), (33, 6, 4, "token", 3), (33, 6, 1, 2, 3),
    (9, 5, 2, 1, "token"), (9, 4, 2, 4, 1), (65, 72, 16, 2, 2),
], ids=str)  # fmt: skip
def test_groups(backend, dtype, tokens, width, states, B, C):
    check(case(2, tokens, width, states, dtype, B=B, C=C), backend)


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("B, C", [("constant", "constant"), ("constant", "token"), (2, "constant"), ("constant", 3)])
def test_constants(backend, B, C):
    check(case(2, 19, 6, 3, B=B, C=C), backend, reverse=B == 2)


@pytest.mark.parametrize("backend, dtype", EACH)
@both_ways
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_by_columns(backend, dtype, reverse, grid):
    check(make(2, grid[0] * grid[1], 5, 3, dtype), backend, reverse=reverse, grid=grid)


@pytest.mark.parametrize("backend, dtype", EACH)
@pytest.mark.parametrize("grid, width, states", [((13, 7), 37, 1), ((4, 33), 19, 4), ((9, 9), 72, 16)], ids=str)
def test_all_at_once(backend, dtype, grid, width, states):
    tensors = case(2, grid[0] * grid[1], 2 * width, states, dtype, B=2, initial=True)
    check(tensors, backend, last=True, reverse=True, grid=grid)


@pytest.mark.parametrize("backend", FASTER)
def test_no_optional_arguments_by_columns(backend):
    check(make(2, 15, 5, 3, D=False, z=False, bias=False), backend, grid=(3, 5))


@pytest.mark.parametrize("backend", FASTER)
def test_gradcheck(backend):
    tensors = case(1, 6, 4, 2, B=2, initial=True)
    leaves = [tensors[name].requires_grad_() for name in (*NAMES, "initial_state")]

    def columns(*leaves):
        options = {"initial_state_BEN": leaves[8], "return_last_state": True, "grid": (2, 3), "backend": backend}
        return selective_scan(*leaves[:8], delta_softplus=True, reverse=True, **options)

    assert torch.autograd.gradcheck(columns, leaves, fast_mode=True)


@pytest.mark.parametrize("backend", FASTER)
def test_half_precision_states_are_float32(backend):
    tensors = case(1, 9, 4, 3, torch.bfloat16, initial=True)
    y, last = scan(tensors, backend, delta_softplus=True, return_last_state=True)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    half = scan(tensors | {"initial_state": tensors["initial_state"].bfloat16()}, backend, delta_softplus=True)
    assert distance(half, y.double()) < 0.02  # rounded


@pytest.mark.parametrize("backend", FASTER)
def test_a_state_that_was_handed_in_stays_as_it_was(backend):
    """Of one state, transposed it is contiguous too."""
    tensors = case(1, 9, 4, 1, torch.float32, initial=True)
    before = tensors["initial_state"].clone()
    _, last = scan(tensors, backend, delta_softplus=True, return_last_state=True)
    assert torch.equal(tensors["initial_state"], before) and not torch.equal(last, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@needs_compiler
def test_threads_and_repeats_give_the_same_bits(threads, dtype):
    tensors, grad = case(2, 130, 150, 5, dtype, B=2, initial=True), torch.randn(2, 130, 150)
    grad_last = normal(2, 150, 5)
    options = {"delta_softplus": True, "grid": (13, 10)}
    threads(1)
    one = value_and_grads(tensors, "cpu", grad, grad_last, **options)
    for count in (2, 3):
        threads(count)
        assert_identical(value_and_grads(tensors, "cpu", grad, grad_last, **options), one)


# One node


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("options", [
    {"initial": True}, {"grid": (4, 5)}, {"B": 2, "initial": True}, {"B": "constant"},
    {"dtype": torch.bfloat16, "C": 2},
], ids=str)  # fmt: skip
def test_opcheck(backend, options):
    options = dict(options)
    grid, initial = options.pop("grid", None), options.get("initial", False)
    tensors = case(1, 20, 4, 2, **({"dtype": torch.float32} | options))
    given = [tensors.get(name) for name in (*NAMES, "initial_state")]
    arguments = *given, None, True, False, grid, backend, initial, True
    leaves = [a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    torch.library.opcheck(torch.ops.longvision.selective_scan, leaves)
    y, last, states = torch.ops.longvision.selective_scan(*arguments)
    grads = torch.ones_like(y), torch.ones_like(last) if initial else None, states
    torch.library.opcheck(torch.ops.longvision.selective_scan_backward, (*grads, *arguments[:-2]))


class Columns(torch.nn.Module):
    def forward(self, x, A, B, initial):
        options = {"initial_state_BEN": initial, "return_last_state": True, "grid": (4, 5), "reverse": True}
        return selective_scan(x, x, A, B, B, delta_softplus=True, **options)


@pytest.mark.parametrize("way", ["compile", "export"])
def test_compiled_and_exported(way):
    tensors = case(1, 20, 4, 2, torch.float32, B=2, initial=True)
    arguments = tuple(tensors[name] for name in ("x", "A", "B", "initial_state"))
    model = Columns()
    torch._dynamo.reset()
    if way == "compile":
        other = torch.compile(model, fullgraph=True, backend="aot_eager")
    else:
        other = torch.export.export(model, arguments).module()
    for got, expected in zip(other(*arguments), model(*arguments)):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_meta_tensors_have_the_shapes_of_real_ones(dtype):
    meta = {name: t.to("meta").requires_grad_() for name, t in case(2, 12, 4, 3, dtype, B=2, initial=True).items()}
    y, last = scan(meta, None, delta_softplus=True, return_last_state=True, grid=(3, 4))
    assert (y.shape, y.dtype) == ((2, 12, 4), dtype)
    assert (last.shape, last.dtype) == ((2, 4, 3), torch.promote_types(dtype, torch.float32))
    (y.sum() + last.sum()).backward()
    assert all(t.grad.shape == t.shape and t.grad.dtype == t.dtype for t in meta.values())


# Mistakes


@pytest.mark.parametrize("name, shape, expected", [
    ("B", (2, 6, 3, 2), r"B of shape \(2, 6, 3, 2\): its 3 groups do not divide the 4 channels of x"),
    ("C", (2, 6, 0, 2), r"C of shape \(2, 6, 0, 2\): its 0 groups do not divide"),
    ("C", (2, 5, 2, 2), r"C of shape \(2, 5, 2, 2\), expected \(2, 6, 2, 2\)"),
    ("B", (3, 2), r"B of shape \(3, 2\), expected \(4, 2\)"),
    ("initial_state", (2, 2, 4), r"initial_state of shape \(2, 2, 4\), expected \(2, 4, 2\)"),
    ("initial_state", (1, 4, 2), r"initial_state of shape \(1, 4, 2\), expected \(2, 4, 2\)"),
])  # fmt: skip
def test_a_wrong_shape_is_named(name, shape, expected):
    with pytest.raises(ValueError, match=expected):
        scan(make(2, 6, 4, 2) | {name: torch.ones(shape)}, None)


@pytest.mark.parametrize("grid", [(2, 2), (0, 6), (-2, -3), (7, 1)])
def test_a_grid_of_other_pixels(grid):
    with pytest.raises(ValueError, match=rf"got grid \({grid[0]}, {grid[1]}\) and 6 tokens: expected"):
        scan(make(2, 6, 4, 2), None, grid=grid)


@pytest.mark.parametrize("name, value", [
    ("initial_state", torch.zeros(1, 4, 2)), ("return_last_state", True), ("grid", (2, 3)),
])  # fmt: skip
def test_packed_sequences_begin_and_end_with_nothing(name, value):
    tensors, options = make(1, 6, 4, 2), {"cu_seqlens": torch.tensor([0, 2, 6])}
    if name == "initial_state":
        tensors[name] = value
    else:
        options[name] = value
    with pytest.raises(ValueError, match=f"got cu_seqlens and {name}: scan the packed sequences one by one"):
        scan(tensors, None, **options)
