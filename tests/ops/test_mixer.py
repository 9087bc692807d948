"""The fused op against the reference, with and without norm and residual, and its life as one graph node."""

import copy

import pytest
import torch

from longvision.layers import VimBlock
from longvision.ops import ScanDirection, mixer
from longvision.ops.kernels.cpp import outside
from longvision.ops.mixer import cpu
from longvision.ops.mixer.reference import mixer_reference
from support.layouts import LAYOUTS, laid_out
from support.mixer_cases import (
    CHANNELS,
    FIELDS,
    MAKERS,
    Case,
    assert_near,
    in_double,
    make,
    make_block,
    make_direction,
    operators,
    truth_of,
    value_and_grads,
)
from support.scan_cases import needs_compiler

pytestmark = [pytest.mark.usefixtures("poison"), needs_compiler]

BOTH_WAYS = (False, True)
WAYS = [(False,), (True,), BOTH_WAYS, (True, True)]
# Relative norms. float64, float32: tens of roundings of 1e-16 or 6e-8, and sums over all tokens that cancel. bfloat16:
# what goes into and comes out of each matmul is rounded by 2**-9 of a value on average, ten times in a chain of five
# matmuls forward and five back; measured 2.7e-2 at most, at one token.
TOLERANCE = {torch.float64: 5e-14, torch.float32: 1e-5, torch.bfloat16: 4e-2}

each_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
mixer_and_block = pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)


@mixer_and_block
@each_dtype
@pytest.mark.parametrize(
    ("tokens", "ways"), [(1, BOTH_WAYS), (17, (True,)), (64, (False,)), (65, (True, True)), (197, BOTH_WAYS)], ids=str
)
def test_equals_the_reference(maker, tokens, ways, dtype):
    case = maker(2, tokens, ways=ways, dtype=dtype)
    got = value_and_grads(case)
    assert got["y"].dtype == got["x"].dtype == case.x.dtype
    assert all(tensor.dtype == dtype for name, tensor in got.items() if name not in ("x", "y"))
    assert_near(got, truth_of(case), TOLERANCE[dtype])


@pytest.mark.parametrize("ways", WAYS, ids=str)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_norm_and_residual_are_each_an_option(ways, norm, residual):
    case = make_block(2, 33, ways=ways)._replace(residual=residual)
    case = case if norm else case._replace(norm_weight=None)
    assert_near(value_and_grads(case), truth_of(case), TOLERANCE[torch.float64])


@pytest.mark.parametrize("width, states, rank, taps", [(1, 1, 1, 1), (16, 5, 1, 2), (37, 16, 5, 3), (70, 3, 12, 8)])
def test_widths_states_ranks_and_taps(width, states, rank, taps):
    case = make(2, 70, width, states=states, rank=rank, taps=taps)
    assert_near(value_and_grads(case), truth_of(case), TOLERANCE[torch.float64])


@mixer_and_block
@pytest.mark.parametrize("ways", WAYS, ids=str)
@pytest.mark.parametrize("cu_seqlens", [[0, 1, 3, 20, 85], [0, 64, 85], [0, 85]], ids=str)
def test_packed(maker, ways, cu_seqlens):
    case = maker(1, 85, ways=ways, cu_seqlens=cu_seqlens)
    assert_near(value_and_grads(case), truth_of(case), TOLERANCE[torch.float64])


@pytest.mark.parametrize("layout", LAYOUTS)
@mixer_and_block
def test_input_of_any_strides(layout, maker):
    case = maker(2, 37, 8)
    strided, grad = laid_out(case.x, layout), laid_out(torch.randn(2, 37, CHANNELS, dtype=torch.float64), layout)
    expected = value_and_grads(case._replace(x=strided.contiguous()), grad=grad.contiguous())
    # The same sums, but in the matmuls in another order: float64.
    assert_near(value_and_grads(case._replace(x=strided), grad=grad), expected, 1e-14)


def test_a_batch_of_one_with_its_tokens_innermost():
    """(1, M, D) as a transposed view, which is what a convolution's output gives: flattened, its columns are apart."""
    case = make_block(1, 17)
    strided = case.x.transpose(1, 2).contiguous().transpose(1, 2)
    assert strided.flatten(0, 1).stride() == (1, 17)
    assert torch.equal(case._replace(x=strided).call(), case.call())


def test_parameters_and_gradients_of_any_strides():
    case = make(2, 37, 8)
    grad = torch.randn(2, CHANNELS, 37, dtype=torch.float64).transpose(1, 2)
    strided = case.changed(lambda t: t.t().contiguous().t() if t.ndim == 2 else t)
    expected = value_and_grads(case, grad=grad.contiguous())
    assert_near(value_and_grads(strided, grad=grad), expected, 1e-14)  # as above
    ones = value_and_grads(case, grad=torch.ones(1, 1, 1).expand(2, 37, CHANNELS))
    assert_near(ones, value_and_grads(case, grad=torch.ones(2, 37, CHANNELS)), 1e-14)


@mixer_and_block
def test_gradcheck(maker):
    case = maker(1, 6, 3, states=2, rank=2, cu_seqlens=[0, 2, 6]).leaves()
    assert torch.autograd.gradcheck(lambda *_: case.call(), tuple(case.named().values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_again_and_with_two_threads(threads, dtype):
    case = make(2, 130, 70, dtype=dtype)
    threads(1)
    one = value_and_grads(case)
    again = value_and_grads(case)
    assert all(torch.equal(again[name], one[name]) for name in one)
    threads(2)
    two, more = value_and_grads(case), value_and_grads(case)
    assert all(torch.equal(two[name], more[name]) for name in one)
    # torch's matmuls may cut their sums elsewhere: roundings of 2**-24 or 2**-8.
    assert_near(two, in_double(one), 1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("wanted", list(make_block(1, 1).named()))
def test_only_one_tensor_wants_a_gradient(wanted):
    """A frozen model with a part that is trained."""
    case = make_block(1, 9, 5)
    every = value_and_grads(case, grad=torch.ones(1, 9, CHANNELS))
    leaf = case.named()[wanted].requires_grad_()
    case.call().sum().backward()
    assert torch.equal(leaf.grad, every[wanted])


def test_the_gradient_handed_in_is_left_alone():
    case = make_block(2, 17)
    y = case._replace(x=case.x.requires_grad_()).call()
    grad = torch.randn_like(y)
    before = grad.clone()
    torch.autograd.grad(y, case.x, grad)
    assert torch.equal(grad, before)


def test_eps_reaches_the_norm():
    """An eps that is as large as the input."""
    case = make_block(2, 20)._replace(eps=0.7)
    assert_near(value_and_grads(case), truth_of(case), TOLERANCE[torch.float64])


# Precision


@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_half_precision_tokens_meet_float32_weights_on_every_backend(monkeypatch, backend, maker):
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", backend)
    case = maker(2, 17, dtype=torch.float32)
    case = case._replace(x=case.x.bfloat16())
    got = value_and_grads(case)
    assert got["y"].dtype == got["x"].dtype == torch.bfloat16 and got["in_proj"].dtype == torch.float32
    assert_near(got, truth_of(case), TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32], ids=str)
def test_a_half_precision_residual_equals_the_reference(weights):
    case = make_block(2, 17, dtype=weights)
    case = case._replace(x=case.x.bfloat16())
    y = case.call()
    assert y.dtype == torch.bfloat16
    assert_near({"y": y}, {"y": case.changed(torch.Tensor.double).truth()}, TOLERANCE[torch.bfloat16])


def test_a_half_precision_residual_leaves_the_mixer_one_node():
    block, x = VimBlock(32), torch.randn(2, 9, 32).bfloat16()
    with torch.no_grad():
        program = torch.export.export(block, (x,))
    assert operators(program.graph) == ["longvision.mixer.default"]
    y = program.module()(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, block(x))


def test_the_residual_is_not_rounded():
    """A mixer that adds nothing: a float32 residual and its gradient come through bfloat16 weights as they are."""
    case = make_block(2, 17, dtype=torch.bfloat16)
    x = torch.randn(2, 17, CHANNELS, requires_grad=True)  # none of which bfloat16 holds
    y = case._replace(x=x, out_proj=torch.zeros_like(case.out_proj)).call()
    grad = torch.randn_like(y)
    y.backward(grad)
    assert torch.equal(y, x) and torch.equal(x.grad, grad)


@pytest.mark.parametrize("ways", [(False,), BOTH_WAYS], ids=str)
def test_autocast_is_near_the_unfused_path(ways):
    """Parameters in float32, as they are."""
    case = make(2, 70, 64, ways, torch.float32)

    def under_autocast(function):
        def call(case):
            with torch.autocast("cpu", torch.bfloat16):
                return function(case)

        return value_and_grads(case, call)

    got, other = under_autocast(Case.call), under_autocast(Case.truth)
    assert {name: t.dtype for name, t in got.items()} == {name: t.dtype for name, t in other.items()}
    assert got["y"].dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for name, t in got.items() if name != "y")
    # Roundings to bf16 between the steps, by 2**-8 at most each: in both, at different places.
    assert_near(got, truth_of(case), 3e-2)
    assert_near(got, in_double(other), 5e-2)


def test_autocast_lowers_the_matmuls_of_a_block_alone():
    case = make_block(2, 64, dtype=torch.float32)
    exact = value_and_grads(case)
    with torch.autocast("cpu", torch.bfloat16):
        got = value_and_grads(case)
    assert all(tensor.dtype == torch.float32 for tensor in got.values())
    assert not torch.equal(got["y"], exact["y"])
    assert_near(got, in_double(exact), 5e-2)


@mixer_and_block
def test_backward_inside_autocast_stays_float32(maker):
    case = maker(2, 37, 8, dtype=torch.float32)
    expected = value_and_grads(case)
    leaves = case.leaves()
    y = leaves.call()
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        y.backward(grad.float())
    assert all(torch.equal(leaf.grad, expected[name]) for name, leaf in leaves.named().items())


# What is saved


@mixer_and_block
def test_saved_are_xz_small_projections_and_the_states_between_chunks(maker):
    """Beside x and z, nothing as large as (B, M, E): neither the norm's output nor the gated one."""
    batch, tokens, width, states, rank = 2, 256, 64, 4, 3
    case = maker(batch, tokens, width, dtype=torch.float32).leaves()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        case.call()
    known = {tensor.data_ptr() for tensor in case.named().values()}
    extra = [tensor.numel() for tensor in saved if tensor.data_ptr() not in known]
    xz = batch * tokens * 2 * width
    projections = 2 * batch * tokens * (rank + 2 * states)
    chunks = 2 * batch * (tokens // 64 + 1) * states * width
    assert sorted(n for n in extra if n) == sorted([projections, chunks, xz])
    assert max(projections, chunks) < batch * tokens * width


def test_without_a_backward_nothing_is_saved():
    case = make(1, 70, 8)
    y, *saved = torch.ops.longvision.mixer(*case.of_the_op(save_for_backward=False))
    assert [tensor.numel() for tensor in saved] == [0, 0, 0]
    full, xz, projections, states = torch.ops.longvision.mixer(*case.of_the_op())
    assert [t.shape for t in (xz, projections, states)] == [(1, 70, 16), (2, 1, 70, 11), (2, 1, 70 // 64 + 1, 4, 8)]
    assert all(torch.isfinite(t).all() for t in (xz, projections, states))
    assert torch.equal(y, full) and torch.equal(y, case.call())


@pytest.mark.parametrize("grad", [True, False])
def test_saving_is_asked_for_where_there_is_a_backward(monkeypatch, grad):
    asked, original = [], cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *arguments: (asked.append(arguments[1]), original(*arguments))[1])
    with torch.set_grad_enabled(grad):
        make(1, 9, 5).leaves().call()
    make(1, 9, 5).call()
    assert asked == [grad, False]


def test_what_is_saved_hands_on_no_gradient():
    case = make_block(2, 9)
    _, xz, *_ = torch.ops.longvision.mixer(*case._replace(x=case.x.requires_grad_()).of_the_op())
    xz.sum().backward()
    assert case.x.grad is None


@mixer_and_block
def test_who_profiles_sees_the_op_which_gives_the_same_bits_as_the_way_around_it(maker):
    case = maker(2, 33, dtype=torch.float32)
    around = value_and_grads(case)
    with torch.profiler.profile() as seen:
        through = value_and_grads(case)
    assert {"longvision::mixer", "longvision::mixer_backward"} <= {event.key for event in seen.key_averages()}
    assert all(torch.equal(around[name], through[name]) for name in around)


@pytest.mark.parametrize("wanted", ["parameter", "x"])
def test_twice_differentiated_is_refused(wanted):
    case = make_block(1, 9).leaves()
    leaf = case.x if wanted == "x" else case.in_proj
    (grad,) = torch.autograd.grad(case.call().square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable"):
        grad.sum().backward()


# One node for autograd, compile and export


@pytest.mark.parametrize("maker, options", [
    (make, {}),
    (make, {"ways": (True,), "save_for_backward": False}),
    (make_block, {"cu_seqlens": [0, 5, 20]}),
    (make_block, {"dtype": torch.bfloat16}),
], ids=lambda value: getattr(value, "__name__", str(value)))  # fmt: skip
def test_opcheck(maker, options):
    save_for_backward = (options := dict(options)).pop("save_for_backward", True)
    case = maker(1, 20, 6, **{"dtype": torch.float32, **options})
    case = case.leaves() if save_for_backward else case
    torch.library.opcheck(torch.ops.longvision.mixer, case.of_the_op(save_for_backward))
    if save_for_backward:
        case = case.changed(torch.Tensor.detach)
        arguments = case.of_the_op()
        y, *saved = torch.ops.longvision.mixer(*arguments)
        torch.library.opcheck(torch.ops.longvision.mixer_backward, (torch.ones_like(y), saved, *arguments[:-1]))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        case = make(1, 1, 8, dtype=torch.float32)
        self.directions = torch.nn.ModuleList(
            torch.nn.ParameterDict({name: getattr(own, name) for name in FIELDS}) for own in case.directions
        )
        self.in_proj, self.out_proj = torch.nn.Parameter(case.in_proj), torch.nn.Parameter(case.out_proj)

    def forward(self, x, cu_seqlens=None):
        own = [ScanDirection(*(own[name] for name in FIELDS), reverse=i == 1) for i, own in enumerate(self.directions)]
        return mixer(x, own, self.in_proj, self.out_proj, cu_seqlens=cu_seqlens)


@pytest.mark.parametrize("cu_seqlens", [None, [0, 7, 20]])
def test_compile_sees_one_node(cu_seqlens):
    from torch._dynamo.backends.common import aot_autograd

    seen = []

    def note(module, _inputs):
        seen.append(operators(module.graph))
        return module.forward

    model, x = Model(), torch.randn(1, 20, CHANNELS)
    cu_seqlens = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    model(x, cu_seqlens).square().sum().backward()
    eager = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=note, bw_compiler=note))
    compiled(x, cu_seqlens).square().sum().backward()
    assert seen == [["longvision.mixer.default"], ["longvision.mixer_backward.default"]]
    assert all(torch.equal(p.grad, eager[name]) for name, p in model.named_parameters())
    with torch.no_grad():
        assert torch.equal(compiled(x, cu_seqlens), model(x, cu_seqlens))


@pytest.mark.parametrize("dynamic", [False, True])
def test_export_sees_one_node(dynamic):
    model, x = Model().eval(), torch.randn(2, 100, CHANNELS)
    sizes = {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("tokens", min=64, max=300)}
    shapes = {"x": sizes, "cu_seqlens": None} if dynamic else None
    program = torch.export.export(model, (x, None), dynamic_shapes=shapes)
    assert operators(program.graph) == ["longvision.mixer.default"]
    other = torch.randn(3, 230, CHANNELS) if dynamic else x
    torch.testing.assert_close(program.module()(other, None), model(other), rtol=1e-6, atol=1e-6)  # float32


# Other backends, and mistakes


@mixer_and_block
@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_another_backend_does_without_the_kernels(monkeypatch, maker, backend):
    case = maker(1, 37, cu_seqlens=[0, 7, 37])
    expected = truth_of(case)
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", backend)
    monkeypatch.setattr(cpu, "forward", None)  # not called
    assert_near(value_and_grads(case), expected, TOLERANCE[torch.float64])


def test_float16_takes_the_ops():
    case = make(1, 20, 8, dtype=torch.float16)
    assert_near(value_and_grads(case), truth_of(case), 1e-2)  # roundings of 2**-11 between the ops


@mixer_and_block
def test_a_long_filter_runs_unfused(monkeypatch, maker):
    """The kernels take eight taps."""
    monkeypatch.setattr(cpu, "forward", None)  # not called
    case = maker(2, 33, taps=12)
    assert_near(value_and_grads(case), truth_of(case), TOLERANCE[torch.float64])


def test_boundaries_that_do_not_pack():
    with pytest.raises(ValueError, match=r"cu_seqlens \[0, 8\] .* 9"):
        make(1, 9, 5, cu_seqlens=[0, 8]).call()


def test_a_parameter_of_another_width_is_named(python):
    """Kernels read where they are told to. In a process of its own: it may crash."""
    done = python("""
import torch
from support.mixer_cases import make_block
case = make_block(2, 100, 64, (False,), dtype=torch.float32)
(own,) = case.directions
for field in own._fields[:-1]:
    short = own._replace(**{field: getattr(own, field)[:2].clone()})
    try:
        case._replace(directions=[short]).call()
    except ValueError as error:
        assert field.rpartition("_")[0] in str(error) or field == "filter_EK", error
    else:
        raise AssertionError(f"{field} of two channels was taken")
for width in (1, 3, 7):
    try:
        case._replace(norm_weight=torch.ones(width)).call()
    except ValueError as error:
        assert "norm_weight" in str(error), error
    else:
        raise AssertionError(f"a weight of {width} channels was taken")
""")
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-300:]}"


@pytest.mark.parametrize("channels", [3, 7])
def test_a_residual_keeps_the_width(channels):
    case = make_block(2, 9)
    with pytest.raises(ValueError, match="out_proj"):
        case._replace(out_proj=torch.ones(channels, 19, dtype=torch.float64)).call()


def test_the_reference_is_algorithm_1():
    """Written down once more, for one direction and one token after the other."""
    case = make_block(1, 7, 3, (False,), states=2, rank=2)
    (own,) = case.directions
    x = case.x[0] / (case.x[0].square().mean(-1, keepdim=True) + case.eps).sqrt() * case.norm_weight
    u, z = (x @ case.in_proj.t()).chunk(2, -1)
    before = torch.cat([torch.zeros(3, 3, dtype=torch.float64), u])
    u = torch.stack([(before[t : t + 4] * own.filter_EK.t()).sum(0) + own.filter_bias_E for t in range(7)])
    u = u * u.sigmoid()
    low, B, C = (u @ own.x_proj_PE.t()).split([2, 2, 2], -1)
    step = (1 + (low @ own.dt_proj_ER.t() + own.dt_bias_E).exp()).log()
    h, rows = torch.zeros(3, 2, dtype=torch.float64), []
    for t in range(7):
        h = (step[t, :, None] * -own.A_log_EN.exp()).exp() * h + (step[t] * u[t])[:, None] * B[t]
        rows.append(h @ C[t] + own.D_E * u[t])
    y = case.x + (torch.stack(rows) * z * z.sigmoid()) @ case.out_proj.t()
    torch.testing.assert_close(mixer_reference(case.described()), y, rtol=0, atol=1e-12)  # float64


def test_an_unused_direction_is_no_direction():
    own = make_direction(19)
    case = make(1, 9)
    for directions in ([], [own] * 3):
        with pytest.raises(ValueError, match=f"got {len(directions)} directions"):
            case._replace(directions=directions).call()


@pytest.mark.parametrize("has_instructions", [True, False])
def test_bfloat16_with_and_without_instructions_for_it(monkeypatch, has_instructions):
    monkeypatch.setattr(outside, "_multiplies_bfloat16", lambda: has_instructions)
    case = make_block(2, 33, width=24, dtype=torch.bfloat16)
    case = case._replace(x=case.x.float())
    truth, got = truth_of(case), value_and_grads(case)
    for name, value in truth.items():
        assert (got[name] - value).norm() <= 0.03 * value.norm(), name


def test_a_matmul_that_fails_outside_is_no_result(monkeypatch, capfd):
    def fail():
        raise MemoryError("none left")

    monkeypatch.setattr(outside, "_multiplies_bfloat16", fail)
    with pytest.raises(MemoryError):
        value_and_grads(make_block(1, 9, dtype=torch.bfloat16)._replace(x=torch.randn(1, 9, CHANNELS)))


@pytest.mark.parametrize("dim, tokens", [(33, 35), (100, 70), (256, 5)])
def test_bfloat16_of_many_channels(dim, tokens):
    block, x = VimBlock(dim).eval(), torch.randn(2, tokens, dim)
    truth = copy.deepcopy(block).double()(x.double()) - x
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        error = block(x) - x - truth
    assert error.norm() <= 0.02 * truth.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("maker", MAKERS)
def test_no_images(maker, dtype):
    case = maker(0, 5, dtype=dtype)
    for name, value in value_and_grads(case).items():
        assert not value.any(), name
    assert case.call().shape == case.x.shape


# Around the rows and columns of every tile that processors have, and a depth that fills none.
@pytest.mark.parametrize("batch, tokens, width", [(1, 1, 24), (1, 31, 19), (2, 33, 32), (3, 65, 100)])
def test_float32_weights_are_rounded_where_bfloat16_is_computed_in(batch, tokens, width):
    """To the bits that come of weights which are stored so."""
    stored = make_block(batch, tokens, width=width, dtype=torch.bfloat16)
    stored = stored._replace(x=stored.x.float())
    given = stored.changed(torch.Tensor.float)
    between = given._replace(in_proj=given.in_proj * (1 + 2**-10), out_proj=given.out_proj * (1 - 2**-10))
    expected = stored.call()
    for case in (given, between):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert torch.equal(case.call(), expected)
