"""The extensions' functions: what an autograd.Function that is made of them computes is what ours computes."""

import pytest
import torch

from longvision.compat import extensions
from longvision.compat.mamba_ssm import causal_conv1d_fn, causal_conv1d_update, selective_scan_fn
from longvision.errors import UserError
from support.golden import relative


def scan_inputs(dtype=torch.float32, D=True, bias=True):
    """Batch 2, 6 channels in 2 groups, 5 tokens, 3 states -> u, delta, A, B, C, D, delta_bias."""
    u, delta, B, C = (torch.randn(shape).to(dtype) for shape in ((2, 6, 5), (2, 6, 5), (2, 2, 3, 5), (2, 2, 3, 5)))
    return [u, delta, -torch.rand(6, 3), B, C, torch.randn(6) if D else None, torch.randn(6) if bias else None]


def truth_of(inputs, z, dout):
    """-> output, last state and gradients in the inputs' order, then z's; float64."""
    leaves = [None if t is None else t.double().requires_grad_() for t in [*inputs, z]]
    u, delta, A, B, C, D, bias, gate = leaves
    out, last = selective_scan_fn(u, delta, A, B, C, D, gate, bias, True, return_last_state=True)
    grads = iter(torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], dout.double()))
    return out, last, [None if leaf is None else next(grads) for leaf in leaves]


@pytest.mark.parametrize("D, bias", [(True, True), (False, False)])
@pytest.mark.parametrize("gated", [True, False])
def test_selective_scan_cuda(gated, D, bias):
    u, delta, A, B, C, D, bias = inputs = scan_inputs(D=D, bias=bias)
    z, dout = torch.randn(2, 6, 5) if gated else None, torch.randn(2, 6, 5)
    out, states, *gated_out = extensions.scan_fwd(u, delta, A, B, C, D, z, bias, True)
    truth, last, grads = truth_of(inputs, z, dout)
    assert relative(states[:, :, -1, 1::2], last) < 1e-6  # where callers look for it
    assert relative(gated_out[0] if gated else out, truth) < 1e-6
    rest = (dout, states, out if gated else None)
    *found, out_z = extensions.scan_bwd(u, delta, A, B, C, D, z, bias, *rest, None, True, True)
    assert relative(out_z, truth) < 1e-6
    assert len(found) == 7 + gated
    for got, true in zip(found, grads):
        assert (got is None) == (true is None) and (true is None or relative(got, true) < 5e-6)
    if gated:
        dxz = torch.full((2, 12, 5), torch.nan)
        dz = dxz.chunk(2, 1)[1]
        found = extensions.scan_bwd(u, delta, A, B, C, D, z, bias, *rest, dz, True, False)
        assert len(found) == 8 and found[7] is dz and relative(dz, grads[7]) < 5e-6


@pytest.mark.parametrize("dtype, out_float", [(torch.float32, True), (torch.bfloat16, True), (torch.bfloat16, False)])
def test_vmamba_s(dtype, out_float):
    """selective_scan_cuda_oflex's output may be float32 where its inputs are not; _core's never is."""
    inputs = scan_inputs(dtype)
    out, states = extensions.oflex_fwd(*inputs, True, 1, out_float)
    dout = torch.randn(2, 6, 5).to(out.dtype)
    truth, _, grads = truth_of(inputs, None, dout)
    assert out.dtype == (torch.float32 if out_float else dtype)
    assert relative(out, truth) < (1e-6 if out.dtype == torch.float32 else 2**-8)
    found = extensions.core_bwd(*inputs, dout, states, True, 1)
    for tensor, got, true in zip(inputs, found, grads):
        assert got.dtype == tensor.dtype and relative(got, true) < (5e-6 if dtype == torch.float32 else 2**-7)
    core, _ = extensions.core_fwd(*inputs, True, 1)
    assert core.dtype == dtype and relative(core, truth) < (1e-6 if dtype == torch.float32 else 2**-8)


FORWARDS = {  # of each version, what follows x, weight and bias
    "1.0": lambda out, given: (True,),
    "1.1": lambda out, given: (given["seq_idx"], True),
    "1.4": lambda out, given: (given["seq_idx"], given["initial_states"], given["final_states_out"], True),
    "1.5": lambda out, given: (given["seq_idx"], given["initial_states"], out, given["final_states_out"], True),
}
NOTHING = {"seq_idx": None, "initial_states": None, "final_states_out": None}


def conv_inputs():
    return torch.randn(2, 5, 7), torch.randn(5, 4), torch.randn(5)


GIVEN = {"nothing": FORWARDS, "states": ("1.4", "1.5"), "seq_idx": ("1.1", "1.4", "1.5")}  # and which versions take it


@pytest.mark.parametrize("given, version", [(given, version) for given in GIVEN for version in GIVEN[given]])
def test_causal_conv1d_fwd(given, version):
    inputs, options, own = conv_inputs(), dict(NOTHING), {}
    if given == "states":
        own = {"initial_states": torch.randn(2, 5, 3), "return_final_states": True}
        options |= {"initial_states": own["initial_states"], "final_states_out": torch.full((2, 5, 3), torch.nan)}
    elif given == "seq_idx":
        own = options["seq_idx"] = torch.tensor([[0, 0, 1, 1, 1, 2, 2]] * 2)
        options, own = options | {"seq_idx": own}, {"seq_idx": own}
    truth = causal_conv1d_fn(*inputs, activation="silu", **own)
    written = torch.full((2, 5, 7), torch.nan)
    out = extensions.conv_fwd(*inputs, *FORWARDS[version](written, options))
    assert (out is None) == (version == "1.5")
    out = written if out is None else out
    if given == "states":
        truth, final = truth
        assert torch.equal(options["final_states_out"], final)
    assert torch.equal(out, truth)


@pytest.mark.parametrize("arguments", [2, 3, 6, 8])
def test_causal_conv1d_bwd(arguments):
    """By the number of arguments after dout: versions 1.0, 1.1, 1.4 and 1.5."""
    x, weight, bias = conv_inputs()
    states = torch.randn(2, 5, 3) if arguments > 3 else None
    dout, dfinal = torch.randn(2, 5, 7), torch.randn(2, 5, 3) if arguments > 3 else None
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias, states) if t is not None]
    truth = causal_conv1d_fn(
        *leaves[:3],
        initial_states=leaves[3] if states is not None else None,
        return_final_states=True,
        activation="silu",
    )
    outs, grads = (truth, (dout, dfinal)) if dfinal is not None else (truth[0], dout)
    true = torch.autograd.grad(outs, leaves, grads)
    dx = torch.full((2, 10, 7), torch.nan).chunk(2, 1)[0]
    written = [dx, *(torch.full(t.shape, torch.nan) for t in (weight, bias)), torch.full((2, 5, 3), torch.nan)]
    rest = {
        2: (dx, True),
        3: (None, dx, True),
        6: (None, states, dfinal, dx, True, True),
        8: (None, states, dfinal, *written, True),
    }[arguments]
    found = extensions.conv_bwd(x, weight, bias, dout, *rest)
    found = written if arguments == 8 else found
    assert found[0] is dx
    assert all(relative(got, other) < 1e-6 for got, other in zip(found, true)) and len(found) >= len(true)


@pytest.mark.parametrize("version", ["1.0", "1.4", "1.5"])
def test_causal_conv1d_update(version):
    x, weight, bias = torch.randn(2, 5), torch.randn(5, 4), torch.randn(5)
    state, written = torch.randn(2, 5, 6), torch.full((2, 5), torch.nan)
    lengths = torch.tensor([4, 9]) if version != "1.0" else None
    own = state.clone()
    truth = causal_conv1d_update(x, own, weight, bias, "silu", lengths)
    rest = {"1.0": (True,), "1.4": (True, lengths), "1.5": (written, True, lengths, None)}[version]
    out = extensions.conv_update(x, state, weight, bias, *rest)
    assert torch.equal(written if version == "1.5" else out, truth) and torch.equal(state, own)


def test_unknown_arguments():
    inputs = conv_inputs()
    with pytest.raises(UserError, match="causal_conv1d_fwd got 6 arguments"):
        extensions.conv_fwd(*inputs, None, None, True)
    with pytest.raises(UserError, match="causal_conv1d_bwd got 8 arguments"):
        extensions.conv_bwd(*inputs, inputs[0], None, None, None, True)
    with pytest.raises(UserError, match="causal_conv1d_fwd got 3 arguments"):
        extensions.conv_fwd(*inputs)
    with pytest.raises(UserError, match="causal_conv1d_update got 4 arguments"):
        extensions.conv_update(inputs[0][..., 0], torch.zeros(2, 5, 4), *inputs[1:])


def test_both_outputs_are_rounded_once():
    """The one behind the gate is not of the rounded one before it."""
    inputs, z = scan_inputs(torch.bfloat16), torch.randn(2, 6, 5).bfloat16()
    u, delta, A, B, C, D, bias = inputs
    found = extensions.scan_fwd(u, delta, A, B, C, D, z, bias, True)
    for gate, got in ((None, found[0]), (z, found[2])):
        truth, *_ = truth_of(inputs, gate, torch.ones(2, 6, 5))
        assert got.dtype == torch.bfloat16
        assert ((got.double() - truth).abs() <= 2**-8 * truth.abs() + 1e-6).all()
