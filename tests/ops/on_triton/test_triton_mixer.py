"""The mixer and the block on Triton kernels against the ops that they are made of, in float64, and as one node."""

from functools import partial

import pytest
import timm
import torch
from layouts import LAYOUTS, laid_out
from test_mamba_block import inputs_of, of_the_op, parts
from test_mamba_block import value_and_grads as of_block
from test_mamba_inner import assert_near, leaves_of, make, make_walk, operators, value_and_grads
from triton_cases import assert_a_graph_repeats

import longvision  # noqa: F401  # registers the models
from longvision.layers import VimBlock
from longvision.ops import mamba_block, mamba_inner
from longvision.ops.mamba_inner import cuda as mixer
from longvision.ops.mamba_inner.composed import composed

pytestmark = pytest.mark.usefixtures("poison", "chosen")

# Relative norms. float32: tens of roundings, and sums over all tokens that cancel. Half precision: what goes into and
# comes out of each product is rounded, ten times in a chain of five products forward and five back; to bfloat16 the
# interpreter cuts off, which errs to one side.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 5e-3}
each_set_of_walks = pytest.mark.parametrize("ways", [(False,), (True,), (False, True), (True, True)], ids=str)


def on(device, inputs):
    return inputs.changed(lambda tensor: tensor.to(device))


def borders_on(device, borders):
    return None if borders is None else torch.tensor(borders, device=device)


def on_cpu(tensors):
    return {name: tensor.cpu() for name, tensor in tensors.items()}


@pytest.fixture
def in_float64(monkeypatch):
    """Calls with the scan of the equations."""

    def call(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setenv("LONGVISION_SCAN_BACKEND", "reference")
            return function(*arguments, **options)

    return call


@pytest.fixture
def check(device, in_float64):
    def check_mixer(inputs, borders=None, tolerance=None):
        got = on_cpu(value_and_grads(mamba_inner, on(device, inputs), cu_seqlens=borders_on(device, borders)))
        dtype = inputs.x.dtype
        assert all(tensor.dtype == dtype for tensor in got.values())
        double = inputs.changed(torch.Tensor.double)
        truth = in_float64(value_and_grads, composed, double, cu_seqlens=borders_on("cpu", borders))
        assert_near(got, truth, tolerance or TOLERANCE[dtype])

    return check_mixer


@pytest.fixture
def check_block(device, in_float64):
    def check(x, norm_weight, inputs, borders=None, eps=1e-5):
        there = x.to(device), norm_weight.to(device), on(device, inputs)
        got = on_cpu(of_block(partial(mamba_block, eps=eps), *there, borders_on(device, borders)))
        double = x.double(), norm_weight.double(), inputs.changed(torch.Tensor.double)
        truth = in_float64(of_block, partial(parts, eps=eps), *double, borders_on("cpu", borders))
        assert got["y"].dtype == got["x"].dtype == x.dtype and got["norm_weight"].dtype == norm_weight.dtype
        assert_near(got, truth, TOLERANCE[norm_weight.dtype])

    return check


# The mixer


@each_set_of_walks
@pytest.mark.parametrize("tokens", [1, 9])
def test_directions(check, tokens, ways):
    check(make(2, tokens, 5, ways, torch.float32, states=2))


@pytest.mark.parametrize("projections", ["in", "out", "none"])
def test_without_projections(check, projections):
    inputs = make(1, 9, 5, dtype=torch.float32, projections=projections == "in", states=2)
    check(inputs._replace(out_proj=torch.randn(5, 5) if projections == "out" else None))


def test_more_than_two_chunks_and_blocks_of_tokens(check):
    check(make(1, 130, 3, dtype=torch.float32, states=1))


@pytest.mark.parametrize("tokens", [64, 65])
def test_a_block_of_tokens_more_or_less(check, tokens):
    check(make(1, tokens, 3, (False,), torch.float32, states=1))


@pytest.mark.parametrize("width, states, rank, taps", [
    (1, 1, 1, 1), (40, 3, 17, 2), (32, 2, 16, 3), (33, 9, 2, 8), (70, 2, 5, 4),
])  # fmt: skip
def test_widths_states_ranks_and_taps(check, width, states, rank, taps):
    check(make(1, 5, width, (False, True), torch.float32, states=states, rank=rank, taps=taps))


@pytest.mark.parametrize("ways", [(True,), (False, True)], ids=str)
@pytest.mark.parametrize("borders", [[0, 1, 3, 8, 20], [0, 20]], ids=str)
def test_packed(check, chunk, ways, borders):
    chunk(4)
    check(make(1, 20, 3, ways, torch.float32, states=1), borders)


def test_packed_with_a_border_on_that_of_a_block(check):
    check(make(1, 67, 3, dtype=torch.float32, states=1), [0, 64, 67])


@pytest.mark.parametrize("ways", [(False,), (False, True)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(check, dtype, ways):
    check(make(1, 20, 16, ways, dtype, states=2))


def test_the_sum_of_the_directions_is_taken_in_float32(device, in_float64):
    """Without neighbours in the filter both directions have the same u, and D u cancels: were the first one's y
    rounded to float16, what is left would be off by ten times the tolerance."""
    inputs = make(2, 9, 16, dtype=torch.float16, states=2, taps=1)
    one, other = inputs.walks
    filters = {"filter_EK": one.filter_EK, "filter_bias_E": one.filter_bias_E}
    skip_E = torch.full_like(one.D_E, 2048)
    inputs = inputs._replace(walks=[one._replace(D_E=skip_E), other._replace(D_E=-skip_E, **filters)])
    got = mamba_inner(*on(device, inputs)).cpu()
    truth = in_float64(composed, *inputs.changed(torch.Tensor.double), None)
    assert_near({"y": got}, {"y": truth}, TOLERANCE[torch.float16])


def test_a_step_of_1e_7_keeps_its_digits_in_float16(device, in_float64):
    """As float16 it would have two of them, in binary, and so would its slope."""
    inputs = make(1, 20, 16, (False,), torch.float16, projections=False, states=2)
    (walk,) = inputs.walks
    walk = walk._replace(dt_bias_E=torch.full_like(walk.dt_bias_E, -15), dt_proj_ER=walk.dt_proj_ER / 16)
    inputs, grad = inputs._replace(walks=[walk]), torch.full((1, 20, 16), 64.0)
    got = value_and_grads(mamba_inner, on(device, inputs), grad.to(device))
    truth = in_float64(value_and_grads, composed, inputs.changed(torch.Tensor.double), grad)
    name = "dt_bias_E of walk 0"
    assert_near({name: got[name].cpu()}, {name: truth[name]}, TOLERANCE[torch.float16])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("projections", [True, False])
def test_input_of_any_strides(device, layout, projections):
    inputs = on(device, make(2, 5, 4, (False,), torch.float32, projections, states=1))
    strided = laid_out(inputs.x, layout)
    expected = value_and_grads(mamba_inner, inputs._replace(x=strided.contiguous()))
    expected = {name: t.double() for name, t in expected.items()}
    assert_near(value_and_grads(mamba_inner, inputs._replace(x=strided)), expected, 2e-6)  # float32, another order


def test_parameters_and_gradients_of_any_strides(device):
    inputs = on(device, make(1, 5, 4, (False,), torch.float32, states=2))
    grad = torch.randn(1, 5, 5, dtype=torch.float64, device=device).transpose(1, 2)
    strided = inputs.changed(lambda t: t.t().contiguous().t() if t.ndim == 2 else t)
    strided = strided.changed(lambda t: torch.stack([t, t + 1], 1)[:, 0] if t.ndim == 1 else t)
    assert not any(t.is_contiguous() for t in strided.walks[0].tensors())
    expected = value_and_grads(mamba_inner, inputs, grad.contiguous())
    expected = {name: t.double() for name, t in expected.items()}
    assert_near(value_and_grads(mamba_inner, strided, grad), expected, 2e-6)  # as above


def test_the_same_bits_again(device):
    inputs = on(device, make(1, 9, 40, dtype=torch.float32, states=1))
    first, second = (value_and_grads(mamba_inner, inputs) for _ in range(2))
    assert all(torch.equal(second[name], first[name]) for name in first)


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_kept(device, keep):
    """The mean of the directions before the gate, and states: nothing that is as large as what the kernels read."""
    inputs = on(device, make(1, 5, 4, dtype=torch.float32, states=2))
    _, *kept = torch.ops.longvision.mamba_inner(*inputs.of_the_op(None, keep, "triton"))
    assert [tuple(t.shape) for t in kept] == ([(1, 5, 4), (0,), (2, 1, 1, 4, 2)] if keep else [(0,)] * 3)
    assert all(torch.isfinite(t).all() for t in kept)


def test_keeping_is_asked_for_where_there_is_a_backward(device, monkeypatch):
    asked, original = [], mixer.forward
    monkeypatch.setattr(mixer, "forward", lambda *arguments: (asked.append(arguments[-1]), original(*arguments))[1])
    inputs = on(device, make(1, 2, 4, (False,), torch.float32, states=1))
    with_gradients = mamba_inner(*leaves_of(inputs))
    assert torch.equal(mamba_inner(*inputs), with_gradients)
    with torch.no_grad():
        mamba_inner(*leaves_of(inputs))
    assert asked == [True, False, False]


def test_a_long_filter_runs_unfused(monkeypatch, device, check):
    monkeypatch.setattr(mixer, "forward", None)  # not called
    inputs = make(1, 12, 3, (False,), torch.float32, states=1)
    check(inputs._replace(walks=[make_walk(3, states=1, taps=9, dtype=torch.float32)]))


# The block


@pytest.mark.parametrize("ways", [(True,), (False, True)], ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_block(check_block, dtype, ways):
    check_block(*inputs_of(5, ways, dtype))


def test_packed_block_with_an_eps(check_block):
    """An eps that is as large as the input."""
    check_block(*inputs_of(9, (False, True), torch.float32, batch=1), borders=[0, 4, 9], eps=0.7)


def test_the_residual_is_not_rounded(device):
    """A mixer that adds nothing: a float32 residual and its gradient come through bfloat16 weights as they are."""
    _, norm_weight, inputs = inputs_of(3, (False, True), torch.bfloat16)
    x, inputs = torch.randn(2, 3, 5, device=device), on(device, inputs)
    inputs = inputs._replace(out_proj=torch.zeros_like(inputs.out_proj))
    y = mamba_block(x.requires_grad_(), norm_weight.to(device), inputs.walks, inputs.in_proj, inputs.out_proj)
    grad = torch.randn_like(y)
    y.backward(grad)
    assert torch.equal(y, x) and torch.equal(x.grad, grad)


def test_autocast_lowers_the_products_alone(device):
    x, norm_weight, inputs = inputs_of(5, (False, True), torch.float32)
    there = x.to(device), norm_weight.to(device), on(device, inputs)
    exact = of_block(mamba_block, *there)
    with torch.autocast(device, torch.bfloat16):
        got = of_block(mamba_block, *there)
    assert all(tensor.dtype == torch.float32 for tensor in got.values())
    assert not torch.equal(got["y"], exact["y"])
    assert_near(got, {name: tensor.double() for name, tensor in exact.items()}, TOLERANCE[torch.bfloat16])


# One node


@pytest.mark.parametrize("options", [
    {}, {"projections": False}, {"borders": [0, 2, 3]}, {"dtype": torch.bfloat16}, {"keep": False},
], ids=str)  # fmt: skip
def test_opcheck_of_the_mixer(device, options):
    borders, keep = borders_on(device, (options := dict(options)).pop("borders", None)), options.pop("keep", True)
    inputs = on(device, make(1, 3, 4, **{"dtype": torch.float32, "states": 1, **options}))
    torch.library.opcheck(torch.ops.longvision.mamba_inner, inputs.of_the_op(borders, keep, "triton"))
    if keep:
        torch.library.opcheck(torch.ops.longvision.mamba_inner, leaves_of(inputs).of_the_op(borders, True, "triton"))
        arguments = inputs.of_the_op(borders, True, "triton")
        y, *kept = torch.ops.longvision.mamba_inner(*arguments)
        torch.library.opcheck(torch.ops.longvision.mamba_inner_backward, (torch.ones_like(y), kept, *arguments[:-1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_of_the_block(device, dtype):
    x, norm_weight, inputs = inputs_of(2, (False,), dtype, batch=1)
    arguments = of_the_op(x.to(device), norm_weight.to(device), on(device, inputs), backend="triton")
    torch.library.opcheck(torch.ops.longvision.mamba_block.default, arguments)
    y, *kept = torch.ops.longvision.mamba_block(*arguments)
    backward = torch.ops.longvision.mamba_block_backward.default
    torch.library.opcheck(backward, (torch.ones_like(y), kept, *arguments[:-1]))


@pytest.mark.parametrize("borders", [None, [0, 2, 5]], ids=str)
def test_a_compiled_training_step_equals_eager(device, borders):
    block, x = VimBlock(4, expand=1, state=1).to(device), torch.randn(1, 5, 4, device=device)
    borders = borders_on(device, borders)
    block(x, borders).square().sum().backward()
    eager = {name: p.grad.clone() for name, p in block.named_parameters()}
    block.zero_grad()
    torch._dynamo.reset()
    y = torch.compile(block, fullgraph=True, backend="aot_eager")(x, borders)
    y.square().sum().backward()
    assert torch.equal(y, block(x, borders))
    assert all(torch.equal(p.grad, eager[name]) for name, p in block.named_parameters())


def test_an_exported_block_is_one_node(device):
    block, x = VimBlock(4, expand=1, state=1).to(device), torch.randn(1, 5, 4, device=device)
    program = torch.export.export(block, (x,))
    assert operators(program.graph) == ["longvision.mamba_block.default"]
    assert torch.equal(program.module()(x), block(x))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model(monkeypatch, device, checkpointing):
    """Forward and backward, against the equations."""
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_classes": 3}
    model, x = timm.create_model("vim_nano_patch4_32", **options), torch.randn(1, 3, 8, 8)
    model.set_grad_checkpointing(checkpointing)

    def step(model, x):
        model.zero_grad()
        y = model(x)
        y.square().sum().backward()
        return {"y": y.detach().cpu(), **{name: p.grad.cpu().clone() for name, p in model.named_parameters()}}

    got = step(model.to(device), x.to(device))
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "reference")
    model.set_grad_checkpointing(False)
    assert_near(got, step(model.cpu().double(), x.double()), TOLERANCE[torch.float32])


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str)
@pytest.mark.parametrize("batch, tokens, width", [(8, 197, 384), (1, 577, 768), (1, 1000, 384), (1, 6085, 384)])
def test_large(cuda, monkeypatch, batch, tokens, width, dtype, tolerance):
    inputs = on(cuda, make(batch, tokens, width, dtype=dtype, states=16, rank=12))
    got, again = (value_and_grads(mamba_inner, inputs) for _ in range(2))
    assert all(torch.equal(again[name], got[name]) for name in got)
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "chunked")
    assert_near(got, value_and_grads(composed, inputs.changed(torch.Tensor.double)), tolerance)


@pytest.mark.gpu
def test_a_batch_of_128(cuda):
    inputs = on(cuda, make(128, 197, 384, dtype=torch.bfloat16, states=16, rank=12))
    got, again = (value_and_grads(mamba_inner, inputs) for _ in range(2))
    assert all(torch.equal(again[name], got[name]) for name in got)
    single = inputs.changed(torch.Tensor.float)
    truth = {name: t.double() for name, t in value_and_grads(mamba_inner, single).items()}
    assert_near(got, truth, 3e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [197, 1000])
def test_a_cuda_graph_gives_what_eager_gives(cuda, tokens):
    block = VimBlock(192).to(cuda)
    x, grad = torch.randn(1, tokens, 192, device=cuda, requires_grad=True), torch.randn(1, tokens, 192, device=cuda)

    def step():
        y = block(x)
        return y, *torch.autograd.grad(y, [x, *block.parameters()], grad)

    assert_a_graph_repeats(step, x)


@pytest.mark.gpu
def test_compiled_by_inductor(cuda):
    block, x = VimBlock(192).to(cuda), torch.randn(2, 197, 192, device=cuda)
    torch._dynamo.reset()
    y = torch.compile(block, fullgraph=True)(x)
    y.square().sum().backward()
    compiled = {name: p.grad.clone() for name, p in block.named_parameters()}
    block.zero_grad()
    block(x).square().sum().backward()
    assert_near(compiled, {name: p.grad.double() for name, p in block.named_parameters()}, 1e-5)


@pytest.mark.gpu
def test_on_another_device_than_the_current_one(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    inputs = make(1, 197, 64, dtype=torch.float32)
    first, second = (on_cpu(value_and_grads(mamba_inner, on(f"cuda:{i}", inputs))) for i in (0, 1))
    assert all(torch.equal(second[name], first[name]) for name in first)
