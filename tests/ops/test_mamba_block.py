"""The fused residual block against the ops that it is made of, and how little it keeps."""

from functools import partial

import pytest
import torch
from scan_cases import needs_compiler
from test_mamba_inner import assert_near, make, operators

from longvision.layers import VimBlock
from longvision.ops import mamba_block, mamba_inner, rms_norm
from longvision.ops.mamba_block import cpu
from longvision.ops.mamba_inner.composed import composed
from longvision.ops.rms_norm.reference import rms_norm_reference

pytestmark = [pytest.mark.usefixtures("poison"), needs_compiler]

EPS = 1e-5
# Relative norms. float64, float32: tens of roundings, and sums over all tokens that cancel. bfloat16: what
# goes into and comes out of each matrix product is rounded by 2**-9 of a value on average, ten times in a chain of five
# products forward and five back; measured 2.7e-2 at most, at one token.
TOLERANCE = {torch.float64: 5e-14, torch.float32: 1e-5, torch.bfloat16: 4e-2}


def inputs_of(tokens, ways, dtype=torch.float64, batch=2):
    """x (a float32 residual or better), the norm's weight, and a mixer's parameters stored in `dtype`."""
    torch.manual_seed(0)
    mixer = make(batch, tokens, 19, ways, dtype)
    return (
        mixer.x.to(torch.promote_types(dtype, torch.float32)),
        torch.rand(5, dtype=torch.float64).to(dtype) + 0.5,
        mixer,
    )


def value_and_grads(function, x, norm_weight, mixer, cu_seqlens=None):
    mixer = mixer.changed(lambda tensor: tensor.detach().requires_grad_())
    x, norm_weight = (tensor.detach().requires_grad_() for tensor in (x, norm_weight))
    y = function(x, norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj, cu_seqlens)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype))
    grads = {name: leaf.grad for name, leaf in mixer._replace(x=x).named().items()}
    return {"y": y.detach(), "norm_weight": norm_weight.grad, **grads}


def truth(monkeypatch, x, norm_weight, mixer, cu_seqlens=None):
    def block(x, norm_weight, walks, in_proj, out_proj, cu_seqlens):
        return x + composed(rms_norm_reference(x, norm_weight, EPS), walks, in_proj, out_proj, cu_seqlens)

    with monkeypatch.context() as patch:
        patch.setenv("LONGVISION_SCAN_BACKEND", "reference")
        return value_and_grads(block, x.double(), norm_weight.double(), mixer.changed(torch.Tensor.double), cu_seqlens)


@pytest.mark.parametrize("tokens", [1, 17, 64, 197])
@pytest.mark.parametrize("ways", [(False,), (True,), (False, True)], ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_equals_the_ops_it_is_made_of(monkeypatch, tokens, ways, dtype):
    inputs = inputs_of(tokens, ways, dtype)
    got = value_and_grads(mamba_block, *inputs)
    assert got["y"].dtype == got["x"].dtype == inputs[0].dtype  # the residual's precision
    assert got["in_proj"].dtype == dtype
    assert_near(got, truth(monkeypatch, *inputs), TOLERANCE[dtype])


def test_packed(monkeypatch):
    inputs, borders = inputs_of(85, (False, True), batch=1), torch.tensor([0, 1, 3, 20, 85])
    got = value_and_grads(mamba_block, *inputs, cu_seqlens=borders)
    assert_near(got, truth(monkeypatch, *inputs, cu_seqlens=borders), TOLERANCE[torch.float64])


def test_a_half_precision_residual_leaves_the_mixer_one_node():
    block, x = VimBlock(32), torch.randn(2, 9, 32).bfloat16()
    with torch.no_grad():
        program = torch.export.export(block, (x,))
    assert operators(program.graph) == ["longvision.mamba_inner.default"]
    y = program.module()(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, block(x))


def test_autocast_lowers_the_products_alone():
    x, norm_weight, mixer = inputs_of(64, (False, True), torch.float32)
    exact = value_and_grads(mamba_block, x, norm_weight, mixer)
    with torch.autocast("cpu", torch.bfloat16):
        got = value_and_grads(mamba_block, x, norm_weight, mixer)
    assert all(tensor.dtype == torch.float32 for tensor in got.values())
    assert not torch.equal(got["y"], exact["y"])
    assert_near(got, {name: tensor.double() for name, tensor in exact.items()}, 5e-2)


def test_opcheck():
    x, norm_weight, mixer = inputs_of(17, (False, True))
    tensors = [tensor.detach().requires_grad_() for walk in mixer.walks for tensor in walk.tensors()]
    ins = x.requires_grad_(), norm_weight.requires_grad_(), tensors, [False, True]
    rest = mixer.in_proj.requires_grad_(), mixer.out_proj.requires_grad_(), None, EPS, torch.float64, "cpu", True
    torch.library.opcheck(torch.ops.longvision.mamba_block.default, (*ins, *rest))


def test_neither_the_norm_s_output_nor_the_gated_one_is_kept():
    x, norm_weight, mixer = inputs_of(640, (False, True), torch.float32)
    mixer = mixer.changed(lambda tensor: tensor.detach().requires_grad_())
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        mamba_block(x, norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj)
    of_tokens = sorted(tuple(tensor.shape[-2:]) for tensor in kept if 640 in tensor.shape)
    assert of_tokens == [(640, 5), (640, 3 + 2 * 4), (640, 2 * 19)]  # x; projections; x and z


def test_without_gradients_nothing_is_kept():
    x, norm_weight, mixer = inputs_of(17, (False, True))
    tensors = [tensor for walk in mixer.walks for tensor in walk.tensors()]
    arguments = (tensors, [False, True], mixer.in_proj, mixer.out_proj, None, EPS, torch.float64, "cpu", False)
    _, *kept = torch.ops.longvision.mamba_block(x, norm_weight, *arguments)
    assert [tensor.numel() for tensor in kept] == [0, 0, 0]


@pytest.mark.parametrize("watched", ["norm", "mixer", "mixer.in_proj", "mixer.out_proj"])
def test_a_block_with_a_hook_calls_its_parts(watched):
    block, x, calls = VimBlock(32), torch.randn(2, 9, 32), []
    expected = block(x)
    block.get_submodule(watched).register_forward_hook(lambda *_: calls.append(watched))
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-6)  # float32, another order of summation
    assert calls == [watched]


def test_a_block_is_one_node():
    block, x = VimBlock(32), torch.randn(2, 9, 32)
    with torch.no_grad():
        program = torch.export.export(block, (x,))
    assert operators(program.graph) == ["longvision.mamba_block.default"]
    torch.testing.assert_close(program.module()(x), block(x), rtol=0, atol=0)


def test_a_parameter_of_another_width_is_named():
    x, norm_weight, mixer = inputs_of(9, (False,))
    walk = mixer.walks[0]._replace(D_E=torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"a walk's D_E of shape \(2,\), expected \(19,\)"):
        mamba_block(x, norm_weight, [walk], mixer.in_proj, mixer.out_proj)


def test_is_the_sum_of_its_parts():
    x, norm_weight, mixer = inputs_of(33, (False, True))
    parts = x + mamba_inner(rms_norm(x, norm_weight, EPS), mixer.walks, mixer.in_proj, mixer.out_proj)
    fused = mamba_block(x, norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj)
    torch.testing.assert_close(fused, parts, rtol=0, atol=1e-13)  # float64, another order of one sum


def of_the_op(x, norm_weight, mixer, borders=None, keep=True, backend="cpu"):
    """As `torch.ops.longvision.mamba_block` takes them."""
    tensors = [tensor for walk in mixer.walks for tensor in walk.tensors()]
    ways = [walk.reverse for walk in mixer.walks]
    parameters = tensors, ways, mixer.in_proj, mixer.out_proj
    return x, norm_weight, *parameters, borders, EPS, norm_weight.dtype, backend, keep


def parts(x, norm_weight, walks, in_proj, out_proj, cu_seqlens=None, eps=EPS):
    return x + composed(rms_norm_reference(x, norm_weight, eps), walks, in_proj, out_proj, cu_seqlens)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_eps_and_borders_reach_every_part(monkeypatch, backend):
    """Fused and not: an eps that is as large as the input."""
    inputs, borders = inputs_of(20, (False, True), batch=1), torch.tensor([0, 7, 20])
    if backend is not None:
        monkeypatch.setenv("LONGVISION_SCAN_BACKEND", backend)
        monkeypatch.setattr(cpu, "forward", None)  # not called
    got = value_and_grads(partial(mamba_block, eps=0.7), *inputs, cu_seqlens=borders)
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "reference")
    assert_near(got, value_and_grads(partial(parts, eps=0.7), *inputs, borders), TOLERANCE[torch.float64])


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32], ids=str)
def test_a_half_precision_residual_equals_the_ops(weights):
    x, norm_weight, mixer = inputs_of(17, (False, True), weights)
    x = x.bfloat16()
    y = mamba_block(x, norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj)
    truth = parts(x.double(), norm_weight.double(), *mixer.changed(torch.Tensor.double)[1:])
    assert y.dtype == torch.bfloat16
    assert_near({"y": y}, {"y": truth}, TOLERANCE[torch.bfloat16])


def test_the_residual_is_not_rounded():
    """A mixer that adds nothing: a float32 residual and its gradient come through bfloat16 weights as they are."""
    _, norm_weight, mixer = inputs_of(17, (False, True), torch.bfloat16)
    x = torch.randn(2, 17, 5)  # none of which bfloat16 holds
    mixer = mixer._replace(out_proj=torch.zeros_like(mixer.out_proj))
    x.requires_grad_()
    y = mamba_block(x, norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj)
    grad = torch.randn_like(y)
    y.backward(grad)
    assert torch.equal(y, x) and torch.equal(x.grad, grad)


def test_the_gradient_handed_in_is_left_alone():
    x, norm_weight, mixer = inputs_of(17, (False, True))
    y = mamba_block(x.requires_grad_(), norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj)
    grad = torch.randn_like(y)
    before = grad.clone()
    torch.autograd.grad(y, x, grad)
    assert torch.equal(grad, before)


def leaves(x, norm_weight, mixer):
    return mixer._replace(x=x).named() | {"norm_weight": norm_weight}


@pytest.mark.parametrize("wanted", list(leaves(*inputs_of(1, (False, True)))))
def test_only_one_tensor_wants_a_gradient(wanted):
    """A frozen model with a part that is trained."""
    inputs = inputs_of(9, (False, True))
    every = value_and_grads(mamba_block, *inputs)
    leaf = leaves(*inputs)[wanted].requires_grad_()
    x, norm_weight, mixer = inputs
    y = mamba_block(x, norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape))
    assert torch.equal(leaf.grad, every[wanted])


@pytest.mark.parametrize("grad", [True, False])
def test_keeping_is_asked_for_where_there_is_a_backward(monkeypatch, grad):
    asked, original = [], cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *arguments: (asked.append(arguments[-1]), original(*arguments))[1])
    x, norm_weight, mixer = inputs_of(9, (False, True))
    rest = norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj
    with torch.set_grad_enabled(grad):
        mamba_block(x.clone().requires_grad_(), *rest)
    mamba_block(x, *rest)
    assert asked == [grad, False]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("borders", [None, [0, 5, 17]], ids=str)
def test_opcheck_of_both_passes(dtype, keep, borders):
    borders = None if borders is None else torch.tensor(borders)
    arguments = of_the_op(*inputs_of(17, (False, True), dtype, batch=1), borders, keep)
    torch.library.opcheck(torch.ops.longvision.mamba_block.default, arguments)
    if keep:
        y, *kept = torch.ops.longvision.mamba_block(*arguments)
        arguments = torch.ones_like(y), kept, *arguments[:-1]
        torch.library.opcheck(torch.ops.longvision.mamba_block_backward.default, arguments)


def test_what_is_kept_hands_on_no_gradient():
    x, norm_weight, mixer = inputs_of(9, (False, True))
    _, xz, *_ = torch.ops.longvision.mamba_block(*of_the_op(x.requires_grad_(), norm_weight, mixer))
    xz.sum().backward()
    assert x.grad is None


def test_borders_that_do_not_pack():
    x, norm_weight, mixer = inputs_of(9, (False,), batch=1)
    with pytest.raises(ValueError, match=r"must rise from 0 to the number of tokens, 9"):
        mamba_block(x, norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj, torch.tensor([0, 8]))


def test_a_long_filter_runs_unfused(monkeypatch):
    """The kernels take eight taps."""
    x, norm_weight, mixer = inputs_of(33, (False,))
    walks = [mixer.walks[0]._replace(filter_EK=torch.randn(19, 12, dtype=torch.float64))]
    monkeypatch.setattr(cpu, "forward", None)  # not called
    got = mamba_block(x, norm_weight, walks, mixer.in_proj, mixer.out_proj)
    expected = parts(x, norm_weight, walks, mixer.in_proj, mixer.out_proj)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)  # float64


def test_backward_inside_autocast_stays_float32():
    inputs = inputs_of(37, (False, True), dtype=torch.float32)
    expected = value_and_grads(mamba_block, *inputs)
    x, norm_weight, mixer = inputs
    mixer = mixer.changed(lambda tensor: tensor.detach().requires_grad_())
    x, norm_weight = x.requires_grad_(), norm_weight.requires_grad_()
    y = mamba_block(x, norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj)
    with torch.autocast("cpu", torch.bfloat16):
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).float())
    assert all(torch.equal(leaf.grad, expected[name]) for name, leaf in leaves(x, norm_weight, mixer).items())


def test_a_batch_of_one_with_its_tokens_innermost():
    """(1, M, D) as a transposed view, which is what a convolution's output gives: flattened, its columns are apart."""
    x, norm_weight, mixer = inputs_of(17, (False, True), batch=1)
    rest = norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert strided.flatten(0, 1).stride() == (1, 17)
    assert torch.equal(mamba_block(strided, *rest), mamba_block(x, *rest))


@pytest.mark.parametrize("channels", [3, 7])
def test_an_output_projection_to_another_width_is_named(channels):
    x, norm_weight, mixer = inputs_of(9, (False,))
    with pytest.raises((ValueError, RuntimeError), match="out_proj"):
        mamba_block(x, norm_weight, mixer.walks, mixer.in_proj, torch.ones(channels, 19, dtype=torch.float64))


def test_a_norm_weight_of_another_width_is_named(python):
    """In a process of its own: it may crash."""
    done = python("""
import torch
from longvision.ops import Walk, mamba_block
r = torch.randn
walk = Walk(r(8, 4), r(8), r(11, 8), r(8, 3), r(8), r(8, 4), r(8), False)
for width in (1, 3, 7):
    try:
        mamba_block(r(2, 9, 5), torch.ones(width), [walk], r(16, 5), r(5, 8))
    except ValueError as error:
        assert "weight" in str(error), error
    else:
        raise AssertionError(f"a weight of {width} channels was taken")
""")
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-300:]}"


def test_weights_say_what_is_stored():
    x, norm_weight, mixer = inputs_of(9, (False, True), torch.bfloat16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        mamba_block(x.requires_grad_(), norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj)
    assert [t.dtype for t in saved if t.shape in ((2, 9, 38), (2, 2, 9, mixer.walks[0].x_proj_PE.shape[0]))] == [
        torch.bfloat16,
        torch.bfloat16,
    ]


@pytest.mark.parametrize("stretch", [lambda y: y.sum(), lambda y: y.transpose(1, 2).contiguous()[:, ::2].sum()])
def test_a_gradient_in_any_layout(stretch):
    x, norm_weight, mixer = inputs_of(9, (False, True))
    grads = []
    for layout in (torch.Tensor.contiguous, lambda grad: grad):
        leaf = x.clone().requires_grad_()
        y = mamba_block(leaf, norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj)
        y.register_hook(layout)
        stretch(y).backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
