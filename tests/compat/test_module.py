"""compat's Mamba against what mamba_ssm's computed (golden files): forward, gradients, prefill and steps."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from longvision import ops
from longvision.compat.mamba_ssm import Mamba
from longvision.errors import UserError
from support.golden import golden, relative

FILES = ["mamba_module_d32", "mamba_module_d48_bias"]


@pytest.fixture(params=FILES)
def released(request, shared):
    """-> the module with the weights of a golden file, and the file's tensors."""
    tensors, metadata = golden(shared, request.param)
    module = Mamba(**metadata["config"], layer_idx=0)
    weights = {k.removeprefix("weights."): t for k, t in tensors.items() if k.startswith("weights.")}
    module.load_state_dict(weights)  # strict: the released names, and no other
    return module, tensors


def cache(offset=0):
    return SimpleNamespace(seqlen_offset=offset, key_value_memory_dict={})


@pytest.mark.parametrize("fast", [True, False])
def test_golden(released, fast):
    module, tensors = released
    module.use_fast_path = fast
    hidden = tensors["hidden_states"].requires_grad_()
    output = module(hidden)
    output.backward(tensors["grad_output"])
    assert relative(output, tensors["output"]) < 1e-6
    assert relative(hidden.grad, tensors["grad_hidden_states"]) < 3e-6
    for name, parameter in module.named_parameters():
        assert relative(parameter.grad, tensors[f"grad.{name}"]) < 3e-6, name


@torch.no_grad()
def test_golden_steps(released):
    module, tensors = released
    hidden = tensors["hidden_states"]
    states = module.allocate_inference_cache(hidden.shape[0], hidden.shape[1])
    for t in range(hidden.shape[1]):
        out, conv_state, ssm_state = module.step(hidden[:, t : t + 1], *states)
        assert (conv_state, ssm_state) == states or (conv_state is states[0] and ssm_state is states[1])
        assert relative(out[:, 0], tensors["step_output"][:, t]) < 1e-6
        assert relative(conv_state, tensors["step_conv_states"][t]) < 1e-6
        assert relative(ssm_state, tensors["step_ssm_states"][t]) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("first", [5, 2])
def test_golden_prefill(released, first):
    """Some tokens at once, fewer than the convolution has taps too, then the rest one by one."""
    module, tensors = released
    hidden, parameters = tensors["hidden_states"], cache()
    outs = [module(hidden[:, :first], parameters)]
    conv_state, ssm_state = parameters.key_value_memory_dict[0]
    assert relative(conv_state, tensors[f"prefill{first}_conv_state"]) < 1e-6
    assert relative(ssm_state, tensors[f"prefill{first}_ssm_state"]) < 1e-6
    for t in range(first, hidden.shape[1]):
        parameters.seqlen_offset = t
        outs.append(module(hidden[:, t : t + 1], parameters))
    assert relative(torch.cat(outs, 1), tensors["output"]) < 1e-6


def test_fast_path_is_one_op(monkeypatch):
    """And a hook on a layer is called: then it is not."""
    called = []
    monkeypatch.setattr("longvision.compat.module.mixer", lambda *a, **k: called.append(1) or ops.mixer(*a, **k))
    module, x = Mamba(16), torch.randn(2, 5, 16)
    fused = module(x)
    assert called == [1]
    module.x_proj.register_forward_hook(lambda *_: called.append("hook"))
    assert relative(module(x), fused) < 1e-6
    assert called == [1, "hook"]


def test_start():
    """Steps between dt_min and dt_max, rates 1 to N, marks for optimisers and initialisations of other code."""
    module = Mamba(64, d_state=4, dt_min=0.01, dt_max=0.02)
    step = nn.functional.softplus(module.dt_proj.bias)
    assert 0.0099 < step.min() < 0.0125 and 0.017 < step.max() < 0.0201
    assert torch.allclose(module.A_log.exp(), torch.arange(1.0, 5).expand(128, 4))
    assert module.dt_proj.weight.abs().max() <= 0.5 and module.dt_proj.weight.std() > 0.2
    assert (module.D == 1).all()
    assert module.A_log._no_weight_decay and module.D._no_weight_decay and module.dt_proj.bias._no_reinit
    constant = Mamba(64, dt_init="constant", dt_scale=2.0, dt_rank=4, expand=1)
    assert (constant.dt_proj.weight == 1).all() and constant.dt_proj.weight.shape == (64, 4)


def test_dtype_of_what_is_made():
    module = Mamba(16, dtype=torch.bfloat16)
    assert module.in_proj.weight.dtype == torch.bfloat16 and module.A_log.dtype == module.D.dtype == torch.float32
    assert module(torch.randn(1, 3, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16
    states = module.allocate_inference_cache(3, 100)
    assert [state.shape for state in states] == [(3, 32, 4), (3, 32, 16)]
    assert {state.dtype for state in states} == {torch.bfloat16}
    assert {state.dtype for state in module.allocate_inference_cache(3, 100, torch.float32)} == {torch.float32}


def test_refusals():
    module, token = Mamba(16, layer_idx=0), torch.randn(3, 1, 16)
    with pytest.raises(UserError, match="2 sequences, and 3 came"):
        module.step(token, *module.allocate_inference_cache(2, 9))
    with pytest.raises(UserError, match="2 tokens"):
        module.step(token.expand(-1, 2, -1), *module.allocate_inference_cache(3, 9))
    parameters = cache()
    module(token[:2], parameters)
    with pytest.raises(UserError, match="2 sequences, and 3 came"):
        module(token, parameters)
    with pytest.raises(UserError, match="layer_idx"):
        Mamba(16)(token, cache())
    with pytest.raises(UserError, match="'zeros'"):
        Mamba(16, dt_init="zeros")
    for rank in ("8", "AUTO", 0, 1.5, None):
        with pytest.raises(UserError, match=f"dt_rank={rank!r}"):
            Mamba(16, dt_rank=rank)
    with pytest.raises(UserError, match="no states of layer 0 at seqlen_offset=5"):
        module(token, cache(5))
    parameters = cache(5)  # but states that were made before are there
    parameters.key_value_memory_dict[0] = module.allocate_inference_cache(3, 9)
    assert module(token, parameters).shape == (3, 1, 16)


def test_float64_stays():
    """Fused, op by op and token by token."""
    module = Mamba(16, dtype=torch.float64, layer_idx=0).double()
    x, parameters = torch.randn(2, 5, 16, dtype=torch.float64), cache()
    fused = module(x)
    module.use_fast_path = False
    assert relative(module(x), fused) < 1e-14
    with torch.no_grad():
        outs = [module(x[:, :3], parameters)]
        for t in (3, 4):
            parameters.seqlen_offset = t
            outs.append(module(x[:, t : t + 1], parameters))
    assert relative(torch.cat(outs, 1), fused) < 1e-14


def test_mixed_precision():
    """Under autocast: fused, op by op, and from a cache; the decay rates stay float32."""
    module, x, parameters = Mamba(16, layer_idx=0), torch.randn(2, 5, 16), cache()
    truth = module(x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        outs = [module(x)]
        module.use_fast_path = False
        outs.append(module(x))
        parts = [module(x[:, :3], parameters)]
        for t in (3, 4):
            parameters.seqlen_offset = t
            parts.append(module(x[:, t : t + 1], parameters))
    for out in (*outs, torch.cat(parts, 1)):
        assert out.dtype == torch.bfloat16 and relative(out, truth) < 0.03


def test_compiled():
    module, x = Mamba(16), torch.randn(2, 5, 16)
    module(x).sum().backward()
    truth = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    torch._dynamo.reset()
    torch.compile(module, fullgraph=True, backend="aot_eager")(x).sum().backward()
    for name, parameter in module.named_parameters():
        assert relative(parameter.grad, truth[name]) < 1e-5, name
