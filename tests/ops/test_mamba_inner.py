"""The fused op against the ops that it is made of, with the scan of the equations, and its life as one graph node."""

from typing import NamedTuple

import pytest
import torch
from layouts import LAYOUTS, laid_out
from scan_cases import needs_compiler

from longvision.ops import Walk, mamba_inner
from longvision.ops.mamba_inner import cpu
from longvision.ops.mamba_inner.composed import composed

pytestmark = [pytest.mark.usefixtures("poison"), needs_compiler]

FIELDS = Walk._fields[:-1]
each_length = pytest.mark.parametrize("tokens", [1, 17, 64, 197])
each_set_of_walks = pytest.mark.parametrize("ways", [(False,), (True,), (False, True), (True, True)], ids=str)


def make_walk(width, states=4, rank=3, taps=4, reverse=False, dtype=torch.float64):
    def normal(*shape, scale=1.0):
        return (scale * torch.randn(*shape, dtype=torch.float64)).to(dtype)

    return Walk(
        filter_EK=normal(width, taps),
        filter_bias_E=normal(width),
        x_proj_PE=normal(rank + 2 * states, width, scale=width**-0.5),
        dt_proj_ER=normal(width, rank),
        dt_bias_E=normal(width) - 1,
        A_log_EN=normal(width, states, scale=0.3),
        D_E=normal(width),
        reverse=reverse,
    )


class Inputs(NamedTuple):
    """Of `mamba_inner`, but for the borders."""

    x: torch.Tensor
    walks: list[Walk]
    in_proj: torch.Tensor | None
    out_proj: torch.Tensor | None

    def named(self):
        """Each tensor by its name."""
        tensors = {name: getattr(self, name) for name in ("x", "in_proj", "out_proj")}
        for i, walk in enumerate(self.walks):
            tensors |= {f"{name} of walk {i}": getattr(walk, name) for name in FIELDS}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def changed(self, function):
        """`function` of each tensor."""
        walks = [Walk(*map(function, walk.tensors()), walk.reverse) for walk in self.walks]
        in_proj, out_proj = (None if t is None else function(t) for t in (self.in_proj, self.out_proj))
        return Inputs(function(self.x), walks, in_proj, out_proj)

    def of_the_op(self, borders, keep, backend="cpu"):
        """As `torch.ops.longvision.mamba_inner` takes them."""
        parameters = [tensor for walk in self.walks for tensor in walk.tensors()]
        directions = [walk.reverse for walk in self.walks]
        return self.x, parameters, directions, self.in_proj, self.out_proj, borders, backend, keep


def make(batch, tokens, width, ways=(False, True), dtype=torch.float64, projections=True, **options):
    """Projections from 5 channels and to 5; without them x is what `in_proj` would give."""
    in_proj, out_proj = torch.randn(2 * width, 5, dtype=torch.float64), torch.randn(5, width, dtype=torch.float64)
    x = torch.randn(batch, tokens, 5 if projections else 2 * width, dtype=torch.float64).to(dtype)
    walks = [make_walk(width, reverse=way, dtype=dtype, **options) for way in ways]
    if not projections:
        return Inputs(x, walks, None, None)
    return Inputs(x, walks, (in_proj / 5**0.5).to(dtype), (out_proj / width**0.5).to(dtype))


def leaves_of(inputs):
    return inputs.changed(lambda tensor: tensor.detach().requires_grad_())


def value_and_grads(function, inputs, grad=None, cu_seqlens=None):
    inputs = leaves_of(inputs)
    y = function(*inputs, cu_seqlens)
    if grad is None:
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    y.backward(grad.to(y.dtype))
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in inputs.named().items()}}


@pytest.fixture
def truth(monkeypatch):
    """`composed` in float64 with the scan of the equations: output and every gradient."""

    def compute(inputs, **options):
        with monkeypatch.context() as patch:
            patch.setenv("LONGVISION_SCAN_BACKEND", "reference")
            return value_and_grads(composed, inputs.changed(torch.Tensor.double), **options)

    return compute


def assert_near(got, truth, tolerance):
    """|got - truth| / |truth| of each."""
    assert got.keys() == truth.keys()
    far = {}
    for name, expected in truth.items():
        assert got[name].shape == expected.shape and torch.isfinite(got[name]).all(), name
        error = ((got[name].double() - expected).norm() / expected.norm().clamp(min=1e-30)).item()
        if not error <= tolerance:
            far[name] = f"{error:.1e}"
    assert not far, far


# float64, float32: tens of roundings of 1e-16 or 6e-8, and sums over all tokens that cancel.
TOLERANCE = {torch.float64: 5e-14, torch.float32: 1e-5}


@each_length
@each_set_of_walks
@pytest.mark.parametrize("projections", ["both", "in", "out", "none"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_equals_the_ops_it_is_made_of(truth, tokens, ways, projections, dtype):
    inputs = make(2, tokens, 19, ways, dtype, projections in ("both", "in"))
    out_proj = torch.randn(5, 19, dtype=dtype) if projections in ("both", "out") else None
    inputs = inputs._replace(out_proj=out_proj)
    got = value_and_grads(mamba_inner, inputs)
    assert all(tensor.dtype == dtype for tensor in got.values())
    assert_near(got, truth(inputs), TOLERANCE[dtype])


@pytest.mark.parametrize("width, states, rank, taps", [(1, 1, 1, 1), (16, 5, 1, 2), (37, 16, 5, 3), (70, 3, 12, 8)])
def test_widths_states_ranks_and_taps(truth, width, states, rank, taps):
    inputs = make(2, 70, width, states=states, rank=rank, taps=taps)
    assert_near(value_and_grads(mamba_inner, inputs), truth(inputs), TOLERANCE[torch.float64])


@each_set_of_walks
@pytest.mark.parametrize("borders", [[0, 1, 3, 20, 85], [0, 64, 85], [0, 85]], ids=str)
def test_packed(truth, ways, borders):
    inputs, borders = make(1, 85, 19, ways), torch.tensor(borders, dtype=torch.int32)
    got = value_and_grads(mamba_inner, inputs, cu_seqlens=borders)
    assert_near(got, truth(inputs, cu_seqlens=borders), TOLERANCE[torch.float64])


@each_length
@pytest.mark.parametrize("ways", [(False,), (False, True)], ids=str)
def test_bf16(truth, tokens, ways):
    """Between its steps the fused op rounds to bf16, by 2**-9 on average: convolution, projections, output; and each
    of their gradients. It is nearer to the truth than the ops one after the other, which round more often."""
    inputs = make(2, tokens, 64, ways, torch.bfloat16)
    expected = truth(inputs)
    assert_near(value_and_grads(mamba_inner, inputs), expected, 3e-2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("projections", [True, False])
def test_input_of_any_strides(layout, projections):
    inputs = make(2, 37, 8, projections=projections)
    strided = laid_out(inputs.x, layout)
    expected = value_and_grads(mamba_inner, inputs._replace(x=strided.contiguous()))
    # The same sums, but in the matrix products in another order: float64.
    assert_near(value_and_grads(mamba_inner, inputs._replace(x=strided)), expected, 1e-14)


@pytest.mark.parametrize("projections", [True, False])
def test_parameters_and_gradients_of_any_strides(projections):
    inputs = make(2, 37, 8, projections=projections)
    width = 5 if projections else 8
    grad = torch.randn(2, width, 37, dtype=torch.float64).transpose(1, 2)
    strided = inputs.changed(lambda t: t.t().contiguous().t() if t.ndim == 2 else t)
    expected = value_and_grads(mamba_inner, inputs, grad.contiguous())
    assert_near(value_and_grads(mamba_inner, strided, grad), expected, 1e-14)  # as above
    ones = value_and_grads(mamba_inner, inputs, torch.ones(1, 1, 1).expand(2, 37, width))
    assert_near(ones, value_and_grads(mamba_inner, inputs, torch.ones(2, 37, width)), 1e-14)


def test_gradcheck():
    inputs = leaves_of(make(1, 6, 3, states=2, rank=2))
    borders = torch.tensor([0, 2, 6])
    assert torch.autograd.gradcheck(lambda *_: mamba_inner(*inputs, borders), tuple(inputs.named().values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_again_and_with_two_threads(threads, dtype):
    inputs = make(2, 130, 70, dtype=dtype)
    threads(1)
    one = value_and_grads(mamba_inner, inputs)
    again = value_and_grads(mamba_inner, inputs)
    assert all(torch.equal(again[name], one[name]) for name in one)
    threads(2)
    two, more = value_and_grads(mamba_inner, inputs), value_and_grads(mamba_inner, inputs)
    assert all(torch.equal(two[name], more[name]) for name in one)
    # torch's matrix products may cut their sums elsewhere: roundings of 2**-24 or 2**-8.
    assert_near(two, {name: t.double() for name, t in one.items()}, 1e-5 if dtype == torch.float32 else 2e-2)


NAMES = ("x", "in_proj", "out_proj", *(f"{name} of walk {i}" for i in (0, 1) for name in FIELDS))


@pytest.mark.parametrize("wanted", NAMES)
def test_only_one_tensor_wants_a_gradient(truth, wanted):
    """A frozen model with a part that is trained."""
    inputs = leaves_of(make(1, 9, 5))
    expected = truth(inputs, grad=torch.ones(1, 9, 5))[wanted]
    for name, tensor in inputs.named().items():
        tensor.requires_grad_(name == wanted)
    mamba_inner(*inputs).sum().backward()
    torch.testing.assert_close(inputs.named()[wanted].grad, expected, rtol=1e-12, atol=1e-12)  # float64


# Autocast


@pytest.mark.parametrize("ways", [(False,), (False, True)], ids=str)
@pytest.mark.parametrize("projections", [True, False])
def test_autocast_is_near_the_composed_path(monkeypatch, truth, ways, projections):
    """Parameters in float32, as they are; x too, or, where it comes from a projection under autocast, in bf16."""
    inputs = make(2, 70, 64, ways, torch.float32, projections)
    inputs = inputs if projections else inputs._replace(x=inputs.x.bfloat16())
    expected = truth(inputs)

    def under_autocast(function):
        with torch.autocast("cpu", torch.bfloat16):
            y = function(*(leaves := leaves_of(inputs)))
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype))
        return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.named().items()}}

    got = under_autocast(mamba_inner)
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "reference")
    other = under_autocast(composed)
    assert {name: t.dtype for name, t in got.items()} == {name: t.dtype for name, t in other.items()}
    assert got["y"].dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for name, t in got.items() if name not in ("y", "x"))
    # Roundings to bf16 between the steps, by 2**-8 at most each: in both, at different places.
    assert_near(got, expected, 3e-2)
    assert_near(got, {name: t.double() for name, t in other.items()}, 5e-2)


def test_backward_inside_autocast_stays_float32():
    inputs = make(2, 37, 8, dtype=torch.float32)
    expected = value_and_grads(mamba_inner, inputs)
    leaves = leaves_of(inputs)
    y = mamba_inner(*leaves)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        y.backward(grad.float())
    assert all(torch.equal(leaf.grad, expected[name]) for name, leaf in leaves.named().items())


# What is kept


@pytest.mark.parametrize("projections", [True, False])
def test_kept_are_xz_small_products_and_the_states_between_pieces(projections):
    """Beside x and z, nothing as large as (B, M, E); without an input projection these are the input itself."""
    batch, tokens, width, states, rank = 2, 256, 64, 4, 3
    inputs = leaves_of(make(batch, tokens, width, dtype=torch.float32, projections=projections))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mamba_inner(*inputs)
    known = {tensor.data_ptr() for tensor in inputs.named().values()}
    extra = [tensor.numel() for tensor in kept if tensor.data_ptr() not in known]
    xz = batch * tokens * 2 * width
    products = 2 * batch * tokens * (rank + 2 * states)
    pieces = 2 * batch * (tokens // 64 + 1) * states * width
    assert sorted(n for n in extra if n) == sorted([products, pieces] + [xz] * projections)
    assert max(products, pieces) < batch * tokens * width


def test_without_a_backward_nothing_is_kept():
    inputs = make(1, 70, 8)
    y, *kept = torch.ops.longvision.mamba_inner(*inputs.of_the_op(None, False))
    assert [tensor.numel() for tensor in kept] == [0, 0, 0]
    full, xz, products, states = torch.ops.longvision.mamba_inner(*inputs.of_the_op(None, True))
    assert [t.shape for t in (xz, products, states)] == [(1, 70, 16), (2, 1, 70, 11), (2, 1, 70 // 64 + 1, 4, 8)]
    assert all(torch.isfinite(t).all() for t in (xz, products, states))
    assert torch.equal(y, full) and torch.equal(y, mamba_inner(*inputs))


@pytest.mark.parametrize("grad", [True, False])
def test_keeping_is_asked_for_where_there_is_a_backward(monkeypatch, grad):
    asked, original = [], cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *arguments: (asked.append(arguments[-1]), original(*arguments))[1])
    with torch.set_grad_enabled(grad):
        mamba_inner(*leaves_of(make(1, 9, 5)))
    mamba_inner(*make(1, 9, 5))
    assert asked == [grad, False]


# One node for autograd, compile and export


@pytest.mark.parametrize("options", [
    {},
    {"ways": (True,)},
    {"projections": False},
    {"borders": [0, 5, 20]},
    {"dtype": torch.bfloat16},
    {"keep": False},
], ids=str)  # fmt: skip
def test_opcheck(options):
    borders = torch.tensor(options.pop("borders")) if "borders" in (options := dict(options)) else None
    keep = options.pop("keep", True)
    inputs = make(1, 20, 6, **{"dtype": torch.float32, **options})
    torch.library.opcheck(torch.ops.longvision.mamba_inner, inputs.of_the_op(borders, keep))
    if keep:
        torch.library.opcheck(torch.ops.longvision.mamba_inner, leaves_of(inputs).of_the_op(borders, True))
        arguments = inputs.of_the_op(borders, True)
        y, *kept = torch.ops.longvision.mamba_inner(*arguments)
        torch.library.opcheck(torch.ops.longvision.mamba_inner_backward, (torch.ones_like(y), kept, *arguments[:-1]))


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        _, walks, in_proj, out_proj = make(1, 1, 8, dtype=torch.float32)
        self.walks = torch.nn.ModuleList(
            torch.nn.ParameterDict({name: getattr(walk, name) for name in FIELDS}) for walk in walks
        )
        self.in_proj, self.out_proj = torch.nn.Parameter(in_proj), torch.nn.Parameter(out_proj)

    def forward(self, x, cu_seqlens=None):
        walks = [Walk(*(walk[name] for name in FIELDS), reverse=i == 1) for i, walk in enumerate(self.walks)]
        return mamba_inner(x, walks, self.in_proj, self.out_proj, cu_seqlens)


def operators(graph):
    return [str(node.target) for node in graph.nodes if "longvision" in str(node.target)]


@pytest.mark.parametrize("borders", [None, [0, 7, 20]])
def test_compile_sees_one_node(borders):
    from torch._dynamo.backends.common import aot_autograd

    seen = []

    def note(module, _inputs):
        seen.append(operators(module.graph))
        return module.forward

    model, x = Inner(), torch.randn(1, 20, 5)
    borders = None if borders is None else torch.tensor(borders)
    model(x, borders).square().sum().backward()
    eager = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=note, bw_compiler=note))
    compiled(x, borders).square().sum().backward()
    assert seen == [["longvision.mamba_inner.default"], ["longvision.mamba_inner_backward.default"]]
    assert all(torch.equal(p.grad, eager[name]) for name, p in model.named_parameters())


def test_compiled_training_step_equals_eager():
    model, x = Inner(), torch.randn(2, 20, 5)
    model(x).square().sum().backward()
    eager = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(x).square().sum().backward()
    assert_near({name: p.grad for name, p in model.named_parameters()}, eager, 1e-6)  # float32
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize("dynamic", [False, True])
def test_export_sees_one_node(dynamic):
    model, x = Inner().eval(), torch.randn(2, 100, 5)
    sizes = {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("tokens", min=64, max=300)}
    shapes = {"x": sizes, "cu_seqlens": None} if dynamic else None
    program = torch.export.export(model, (x, None), dynamic_shapes=shapes)
    assert operators(program.graph) == ["longvision.mamba_inner.default"]
    other = torch.randn(3, 230, 5) if dynamic else x
    torch.testing.assert_close(program.module()(other, None), model(other), rtol=1e-6, atol=1e-6)  # float32


# Other backends, and mistakes


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_another_backend_of_the_scan_takes_the_ops(monkeypatch, truth, backend):
    inputs = make(2, 37, 19)
    expected = truth(inputs)
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", backend)
    monkeypatch.setattr(cpu, "forward", None)  # not called
    assert_near(value_and_grads(mamba_inner, inputs), expected, TOLERANCE[torch.float64])


def test_float16_takes_the_ops(truth):
    inputs = make(1, 20, 8, dtype=torch.float16)
    assert_near(value_and_grads(mamba_inner, inputs), truth(inputs), 1e-2)  # roundings of 2**-11 between the ops


def test_borders_that_do_not_pack():
    with pytest.raises(ValueError, match=r"must rise from 0 to the number of tokens, 9"):
        mamba_inner(*make(1, 9, 5), torch.tensor([0, 8]))


ALONE = """
import torch
from longvision.ops import Walk, mamba_inner
from longvision.ops.mamba_inner.composed import composed
torch.manual_seed(0)
E, N, R, K = 64, 4, 3, {taps}
r = torch.randn
walk = Walk(r(E, K), r(E), 0.1 * r(R + 2 * N, E), r(E, R), r(E) - 1, 0.3 * r(E, N), r(E), False)
"""


def test_a_long_filter(python):
    """The kernels take eight taps; in a process of its own, for what happens beyond."""
    done = python(
        ALONE.format(taps=12)
        + """
xz = r(2, 100, 2 * E, requires_grad=True)
y, truth = mamba_inner(xz, [walk]), composed(xz, [walk])
torch.testing.assert_close(y, truth, rtol=1e-4, atol=1e-4)
torch.testing.assert_close(*(torch.autograd.grad(t.sum(), xz)[0] for t in (y, truth)), rtol=1e-3, atol=1e-3)
"""
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-500:]}"


def test_a_parameter_of_another_width_is_named(python):
    """Kernels read where they are told to. In a process of its own: it may crash."""
    done = python(
        ALONE.format(taps=4)
        + """
for field in walk._fields[:-1]:
    short = walk._replace(**{field: getattr(walk, field)[:2].clone()})
    try:
        mamba_inner(r(2, 100, 2 * E), [short])
    except ValueError as error:
        assert field.rpartition("_")[0] in str(error), error
    else:
        raise AssertionError(f"{field} of two channels was taken")
"""
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-300:]}"
