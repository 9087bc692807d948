"""The fused residual block against the ops that it is made of, and how little it keeps."""

import pytest
import torch
from scan_cases import needs_compiler
from test_mamba_inner import assert_near, make

from longvision.layers import VimBlock
from longvision.ops import mamba_block, mamba_inner, rms_norm
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


def test_a_half_precision_residual_runs_unfused():
    x, norm_weight, mixer = inputs_of(17, (False, True), torch.bfloat16)
    y = mamba_block(x.bfloat16(), norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj)
    assert y.dtype == torch.bfloat16 and torch.isfinite(y).all()


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
    rest = mixer.in_proj.requires_grad_(), mixer.out_proj.requires_grad_(), None, EPS, torch.float64, True
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
    arguments = (tensors, [False, True], mixer.in_proj, mixer.out_proj, None, EPS, torch.float64, False)
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
    names = [str(node.target) for node in program.graph.nodes if "longvision" in str(node.target)]
    assert names == ["longvision.mamba_block.default"]
    torch.testing.assert_close(program.module()(x), block(x), rtol=0, atol=0)


def test_a_parameter_of_another_width_is_named():
    x, norm_weight, mixer = inputs_of(9, (False,))
    walk = mixer.walks[0]._replace(D_E=torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"D_E has shape \(2,\), expected a tensor of shape \(19,\)"):
        mamba_block(x, norm_weight, [walk], mixer.in_proj, mixer.out_proj)


def test_is_the_sum_of_its_parts():
    x, norm_weight, mixer = inputs_of(33, (False, True))
    parts = x + mamba_inner(rms_norm(x, norm_weight, EPS), mixer.walks, mixer.in_proj, mixer.out_proj)
    fused = mamba_block(x, norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj)
    torch.testing.assert_close(fused, parts, rtol=0, atol=1e-13)  # float64, another order of one sum
