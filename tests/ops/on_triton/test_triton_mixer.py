"""The mixer on Triton kernels, with and without norm and residual, against the reference in float64; as one node."""

import pytest
import timm
import torch

import longvision  # noqa: F401  # registers the models
from longvision.layers import VimBlock
from longvision.ops.mixer import cuda as kernels
from support.layouts import LAYOUTS, laid_out
from support.mixer_cases import (
    CHANNELS,
    MAKERS,
    assert_near,
    in_double,
    make,
    make_block,
    operators,
    truth_of,
    value_and_grads,
)
from support.triton_cases import assert_a_graph_repeats

pytestmark = pytest.mark.usefixtures("poison", "chosen")

# Relative norms. float32: tens of roundings, and sums over all tokens that cancel. Half precision: what goes into and
# comes out of each matmul is rounded, ten times in a chain of five matmuls forward and five back; to bfloat16 the
# interpreter cuts off, which errs to one side.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 5e-3}
BOTH_WAYS = (False, True)

mixer_and_block = pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)


def on_cpu(tensors):
    return {name: tensor.cpu() for name, tensor in tensors.items()}


@pytest.fixture
def check(device):
    def check_case(case):
        got, dtype = on_cpu(value_and_grads(case.on(device))), case.in_proj.dtype
        assert got["y"].dtype == got["x"].dtype == case.x.dtype
        assert all(tensor.dtype == dtype for name, tensor in got.items() if name not in ("x", "y"))
        assert_near(got, truth_of(case), TOLERANCE[dtype])

    return check_case


@pytest.mark.parametrize(
    ("tokens", "ways"), [(1, BOTH_WAYS), (5, (False,)), (5, (True,)), (5, BOTH_WAYS), (5, (True, True))], ids=str
)
def test_directions(check, tokens, ways):
    check(make(2, tokens, 5, ways, torch.float32, states=1))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_norm_and_residual_are_each_an_option(check, norm, residual):
    case = make_block(1, 3, 4, (True,), dtype=torch.float32, states=1)._replace(residual=residual)
    check(case if norm else case._replace(norm_weight=None))


@pytest.mark.slow
def test_more_than_two_chunks_and_blocks_of_tokens(check, blocks):
    blocks(16)
    check(make(1, 34, 3, dtype=torch.float32, states=1))


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [16, 17])
def test_a_block_of_tokens_more_or_less(check, blocks, tokens):
    blocks(16)
    check(make(1, tokens, 3, (False,), torch.float32, states=1))


@pytest.mark.parametrize("width, states, rank, taps", [
    (1, 1, 1, 1), (40, 3, 17, 2), (32, 2, 16, 3), (33, 9, 2, 8), (70, 2, 5, 4),
])  # fmt: skip
def test_widths_states_ranks_and_taps(check, width, states, rank, taps):
    check(make(1, 3, width, (False,), torch.float32, states=states, rank=rank, taps=taps))


@pytest.mark.parametrize(("cu_seqlens", "ways"), [([0, 1, 3, 8, 10], BOTH_WAYS), ([0, 10], (True,))], ids=str)
def test_packed(check, chunk, cu_seqlens, ways):
    chunk(4)
    check(make(1, 10, 3, ways, torch.float32, cu_seqlens, states=1))


@pytest.mark.slow
def test_packed_with_a_boundary_on_that_of_a_block(check, blocks):
    blocks(16)
    check(make(1, 18, 3, dtype=torch.float32, cu_seqlens=[0, 16, 18], states=1))


@pytest.mark.slow
def test_blocks_of_their_own_length(check):
    check(make(1, 66, 3, (True,), torch.float32, cu_seqlens=[0, 64, 66], states=1))


@pytest.mark.parametrize(("dtype", "ways"), [(torch.bfloat16, BOTH_WAYS), (torch.float16, (False,))], ids=str)
def test_half_precision(check, dtype, ways):
    check(make(1, 7, 16, ways, dtype, states=2))


@pytest.mark.parametrize(
    ("dtype", "ways"), [(torch.float32, BOTH_WAYS), (torch.bfloat16, (True,)), (torch.float16, BOTH_WAYS)], ids=str
)
def test_block(check, dtype, ways):
    check(make_block(2, 5, ways=ways, dtype=dtype))


def test_packed_block_with_an_eps(check):
    """An eps that is as large as the input."""
    check(make_block(1, 5, dtype=torch.float32, cu_seqlens=[0, 2, 5], states=1)._replace(eps=0.7))


def test_the_sum_of_the_directions_is_taken_in_float32(device):
    """Without neighbours in the filter both directions have the same u, and D u cancels: were the first one's y
    rounded to float16, what is left would be off by ten times the tolerance."""
    case = make(2, 9, 16, dtype=torch.float16, states=2, taps=1)
    one, other = case.directions
    filters = {"filter_EK": one.filter_EK, "filter_bias_E": one.filter_bias_E}
    skip_E = torch.full_like(one.D_E, 2048)
    case = case._replace(directions=[one._replace(D_E=skip_E), other._replace(D_E=-skip_E, **filters)])
    got = case.on(device).call().cpu()
    assert_near({"y": got}, {"y": case.changed(torch.Tensor.double).truth()}, TOLERANCE[torch.float16])


def test_a_step_of_1e_7_keeps_its_digits_in_float16(device):
    """As float16 it would have two of them, in binary, and so would its slope."""
    case = make(1, 20, 16, (False,), torch.float16, states=2)
    (own,) = case.directions
    own = own._replace(dt_bias_E=torch.full_like(own.dt_bias_E, -15), dt_proj_ER=own.dt_proj_ER / 16)
    hand_on = {"in_proj": torch.eye(32).half(), "out_proj": torch.eye(16).half()}
    case = case._replace(directions=[own], x=torch.randn(1, 20, 32).half(), **hand_on)
    grad = torch.full((1, 20, 16), 64.0)
    got, truth = value_and_grads(case.on(device), grad=grad.to(device)), truth_of(case, grad)
    name = "dt_bias_E of direction 0"
    assert_near({name: got[name].cpu()}, {name: truth[name]}, TOLERANCE[torch.float16])


@pytest.mark.parametrize("layout", LAYOUTS)
@mixer_and_block
def test_input_of_any_strides(check, layout, maker):
    case = maker(2, 5, 4, ways=(False,), dtype=torch.float32, states=1)
    check(case._replace(x=laid_out(case.x, layout)))


def test_parameters_and_gradients_of_any_strides(device):
    case = make(1, 5, 4, (False,), torch.float32, states=2)
    grad = torch.randn(1, CHANNELS, 5, dtype=torch.float64).transpose(1, 2)
    expected = truth_of(case, grad)
    case, grad = case.on(device), grad.to(device)
    strided = case.changed(lambda t: t.t().contiguous().t() if t.ndim == 2 else t)
    strided = strided.changed(lambda t: torch.stack([t, t + 1], 1)[:, 0] if t.ndim == 1 else t)
    assert not any(t.is_contiguous() for t in strided.directions[0].tensors())
    assert_near(on_cpu(value_and_grads(strided, grad=grad)), expected, TOLERANCE[torch.float32])


@pytest.mark.slow
def test_the_same_bits_again(device):
    case = make(1, 9, 40, dtype=torch.float32, states=1).on(device)
    first, second = (value_and_grads(case) for _ in range(2))
    assert all(torch.equal(second[name], first[name]) for name in first)


@pytest.mark.parametrize("save_for_backward", [True, False])
def test_what_is_saved(device, save_for_backward):
    """The mean of the directions before the gate, and states: nothing that is as large as what the kernels read."""
    case = make(1, 5, 4, dtype=torch.float32, states=2).on(device)
    _, *saved = torch.ops.longvision.mixer(*case.of_the_op(save_for_backward, "triton"))
    assert [tuple(t.shape) for t in saved] == ([(1, 5, 4), (0,), (2, 1, 1, 4, 2)] if save_for_backward else [(0,)] * 3)
    assert all(torch.isfinite(t).all() for t in saved)


def test_saving_is_asked_for_where_there_is_a_backward(device, monkeypatch):
    asked, original = [], kernels.forward
    monkeypatch.setattr(kernels, "forward", lambda *arguments: (asked.append(arguments[-1]), original(*arguments))[1])
    case = make(1, 2, 4, (False,), torch.float32, states=1).on(device)
    with_gradients = case.leaves().call()
    assert torch.equal(case.call(), with_gradients)
    with torch.no_grad():
        case.leaves().call()
    assert asked == [True, False, False]


def test_a_long_filter_runs_unfused(monkeypatch, check):
    monkeypatch.setattr(kernels, "forward", None)  # not called
    check(make(1, 12, 3, (False,), torch.float32, states=1, taps=9))


@pytest.mark.slow
def test_the_residual_is_not_rounded(device):
    """A mixer that adds nothing: a float32 residual and its gradient come through bfloat16 weights as they are."""
    case = make_block(2, 3, dtype=torch.bfloat16).on(device)
    x = torch.randn(2, 3, CHANNELS, device=device, requires_grad=True)
    y = case._replace(x=x, out_proj=torch.zeros_like(case.out_proj)).call()
    grad = torch.randn_like(y)
    y.backward(grad)
    assert torch.equal(y, x) and torch.equal(x.grad, grad)


@pytest.mark.slow
def test_autocast_lowers_the_matmuls_alone(device):
    case = make_block(2, 5, dtype=torch.float32).on(device)
    exact = value_and_grads(case)
    with torch.autocast(device, torch.bfloat16):
        got = value_and_grads(case)
    assert all(tensor.dtype == torch.float32 for tensor in got.values())
    assert not torch.equal(got["y"], exact["y"])
    assert_near(got, in_double(exact), TOLERANCE[torch.bfloat16])


# One node


@pytest.mark.parametrize("maker, options", [
    (make, {"save_for_backward": False}),
    pytest.param(
        make_block, {"cu_seqlens": [0, 1, 2], "dtype": torch.bfloat16, "ways": (True,)}, marks=pytest.mark.slow
    ),
], ids=lambda value: getattr(value, "__name__", str(value)))  # fmt: skip
def test_opcheck(device, maker, options):
    save_for_backward = (options := dict(options)).pop("save_for_backward", True)
    case = maker(1, 2, 4, **{"dtype": torch.float32, "states": 1, **options}).on(device)
    case = case.leaves() if save_for_backward else case
    torch.library.opcheck(torch.ops.longvision.mixer, case.of_the_op(save_for_backward, "triton"))
    if save_for_backward:
        case = case.changed(torch.Tensor.detach)
        arguments = case.of_the_op(True, "triton")
        y, *saved = torch.ops.longvision.mixer(*arguments)
        torch.library.opcheck(torch.ops.longvision.mixer_backward, (torch.ones_like(y), saved, *arguments[:-1]))


@pytest.mark.slow
def test_a_compiled_training_step_equals_eager(device):
    """Packed; of a plain batch tests/ops/test_mixer.py compiles the same node."""
    block, x = VimBlock(4, state=1).to(device), torch.randn(1, 3, 4, device=device)
    cu_seqlens = torch.tensor([0, 1, 3], device=device)
    block(x, cu_seqlens).square().sum().backward()
    eager = {name: p.grad.clone() for name, p in block.named_parameters()}
    block.zero_grad()
    torch._dynamo.reset()
    y = torch.compile(block, fullgraph=True, backend="aot_eager")(x, cu_seqlens)
    y.square().sum().backward()
    assert torch.equal(y, block(x, cu_seqlens))
    assert all(torch.equal(p.grad, eager[name]) for name, p in block.named_parameters())


def test_an_exported_block_is_one_node(device):
    block, x = VimBlock(4, state=1).to(device), torch.randn(1, 5, 4, device=device)
    program = torch.export.export(block, (x,))
    assert operators(program.graph) == ["longvision.mixer.default"]
    assert torch.equal(program.module()(x), block(x))


@pytest.mark.slow
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
    case = make(batch, tokens, width, dtype=dtype, states=16, rank=12).on(cuda)
    got, again = (value_and_grads(case) for _ in range(2))
    assert all(torch.equal(again[name], got[name]) for name in got)
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "chunked")
    assert_near(got, value_and_grads(case.changed(torch.Tensor.double)), tolerance)


@pytest.mark.gpu
def test_a_batch_of_128(cuda):
    case = make(128, 197, 384, dtype=torch.bfloat16, states=16, rank=12).on(cuda)
    got, again = (value_and_grads(case) for _ in range(2))
    assert all(torch.equal(again[name], got[name]) for name in got)
    assert_near(got, in_double(value_and_grads(case.changed(torch.Tensor.float))), 3e-2)


@pytest.mark.gpu
def test_packed_blocks_do_not_wait_for_the_gpu(cuda):
    """The boundaries are looked at once, by the first of them."""
    blocks = [VimBlock(32).to(cuda) for _ in range(3)]
    x, cu_seqlens = torch.randn(1, 30, 32, device=cuda), torch.tensor([0, 11, 30], device=cuda)
    for block in blocks:  # compiles what is to be compiled
        block(x, cu_seqlens)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for block in blocks:
            x = block(x, cu_seqlens)
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
    case = make(1, 197, 64, dtype=torch.float32)
    first, second = (on_cpu(value_and_grads(case.on(f"cuda:{i}"))) for i in (0, 1))
    assert all(torch.equal(second[name], first[name]) for name in first)
