"""What is put on a layer of a block does its work: adapters, hooks, other modules; or it is refused by name."""

import pytest
import torch
from torch import nn

from longvision.layers import VimBlock, VimMixer

LINEARS = ("in_proj", "x_proj", "x_proj_b", "dt_proj", "dt_proj_b", "out_proj")
FILTERS = ("conv1d", "conv1d_b")
LAYERS = (*LINEARS, *FILTERS)
PARTS = ("norm", "drop_path", "mixer", *(f"mixer.{name}" for name in LAYERS))


def block_of(width=16, **options):
    """In float64, with parameters that no two directions share by chance."""
    block = VimBlock(width, **options).double()
    for name, parameter in block.named_parameters():
        nn.init.normal_(parameter, std=0.3 if "log" in name else 0.5)
    return block


def tokens(batch=2, count=9, width=16):
    return torch.randn(batch, count, width, dtype=torch.float64)


def assert_same(got, truth):
    """Two orders of summation in float64: some roundings of 1e-16 of the largest value."""
    torch.testing.assert_close(got, truth, rtol=0, atol=1e-13 * truth.abs().max().item())


def replaced(parent, name, module):
    setattr(parent, name, module)
    return module


# Hooks


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("fused", [True, False])
def test_a_forward_hook_is_called(name, fused):
    block, x, calls = block_of(), tokens(), []
    expected = block(x)
    block.fused = block.mixer.fused = fused
    module = block.get_submodule(name)
    handles = [
        module.register_forward_hook(lambda *_: calls.append("after")),
        module.register_forward_pre_hook(lambda *_: calls.append("before")),
    ]
    assert_same(block(x), expected)
    assert calls == ["before", "after"]
    for handle in handles:
        handle.remove()
    block(x)
    assert len(calls) == 2


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_backward_hook_is_called(name, register):
    block, calls = block_of(), []
    getattr(block.get_submodule(name), register)(lambda *_: calls.append(name))
    block(tokens().requires_grad_()).sum().backward()
    assert calls == [name]


@pytest.mark.parametrize("name", LAYERS)
def test_what_a_hook_returns_counts(name):
    """As if the layer's parameters were three times as large."""
    block, x = block_of(), tokens()
    module = block.mixer.get_submodule(name)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
        expected = block(x)
        for parameter in module.parameters():
            parameter.div_(3)
    module.register_forward_hook(lambda module, inputs, y: 3 * y)
    assert_same(block(x), expected)


def test_a_hook_on_every_module_of_the_process_sees_every_layer():
    block, x, seen = block_of(), tokens(), []
    names = {module: name for name, module in block.named_modules()}
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(names[module]))
    try:
        block(x)
    finally:
        handle.remove()
    assert set(seen) == {"", *PARTS}


def test_a_hook_on_packed_images():
    block, x, boundaries = block_of(), tokens(1, 30), torch.tensor([0, 1, 3, 17, 30])
    expected = block(x, boundaries)
    for name in FILTERS:
        block.mixer.get_submodule(name).register_forward_hook(lambda *_: None)
    assert_same(block(x, boundaries), expected)


# Other modules


class Doubled(nn.Linear):
    """Twice a Linear: an adapter of some kind."""

    def forward(self, x):
        return 2 * super().forward(x)


class DoubledFilter(nn.Conv1d):
    def forward(self, x):
        return 2 * super().forward(x)


class Wrapper(nn.Module):
    """Holds a layer, and shows nothing of it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 2 * self.layer(x)


def doubled(layer):
    if isinstance(layer, nn.Conv1d):
        other = DoubledFilter(layer.in_channels, layer.out_channels, layer.kernel_size, groups=layer.groups)
    else:
        other = Doubled(layer.in_features, layer.out_features, bias=layer.bias is not None)
    other.double().load_state_dict(layer.state_dict())
    return other


def with_another_forward(layer):
    """So some libraries wrap a module."""
    original = layer.forward
    layer.forward = lambda x: 2 * original(x)
    return layer


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("change", [doubled, Wrapper, with_another_forward])
def test_another_module_is_called(name, change):
    mixer, x = block_of().mixer, tokens()
    layer = mixer.get_submodule(name)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2)
        expected = mixer(x)
        for parameter in layer.parameters():
            parameter.div_(2)
    replaced(mixer, name, change(layer))
    assert_same(mixer(x), expected)


@pytest.mark.parametrize("name", ["in_proj", "x_proj", "out_proj"])
def test_a_bias_is_added(name):
    block, x = block_of(), tokens()
    old = block.mixer.get_submodule(name)
    layer = replaced(block.mixer, name, nn.Linear(old.in_features, old.out_features, dtype=torch.float64))
    layer.load_state_dict({"weight": old.weight, "bias": torch.zeros_like(layer.bias)})
    without = block(x)
    replaced(block.mixer, name, old)
    assert_same(without, block(x))
    replaced(block.mixer, name, layer)
    nn.init.ones_(layer.bias)
    assert not torch.allclose(block(x), without)


def test_a_dt_proj_without_a_bias():
    block, x = block_of(), tokens()
    nn.init.zeros_(block.mixer.dt_proj.bias)
    expected = block(x)
    block.mixer.dt_proj.bias = None
    assert_same(block(x), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_a_weight_with_a_parametrization(name):
    """As spectral or weight normalisation: it is read as the attribute `weight`."""
    block, x = block_of(), tokens()
    layer = block.mixer.get_submodule(name)
    with torch.no_grad():
        layer.weight.mul_(3)
        expected = block(x)
        layer.weight.div_(3)

    class Triple(nn.Module):
        def forward(self, weight):
            return 3 * weight

    nn.utils.parametrize.register_parametrization(layer, "weight", Triple())
    assert_same(block(x), expected)


# Settings of the convolution


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("setting", [{"dilation": 2}, {"stride": 2}, {"padding": 3}, {"groups": 8}], ids=str)
def test_another_setting_of_the_convolution_is_refused_by_name(name, setting):
    block = block_of()
    replaced(block.mixer, name, nn.Conv1d(32, 32, 4, **{"groups": 32, **setting}).double())
    ((key, _),) = setting.items()
    for hooked in (False, True):
        with pytest.raises(ValueError, match=f"^{name} has {key}="):
            block(tokens())
        if not hooked:
            block.mixer.get_submodule(name).register_forward_hook(lambda *_: None)


def test_a_longer_filter_is_taken():
    block, x = block_of(direction="none"), tokens()
    expected = block(x)
    old = block.mixer.conv1d
    longer = replaced(block.mixer, "conv1d", nn.Conv1d(32, 32, 6, groups=32).double())
    with torch.no_grad():
        longer.weight.copy_(torch.cat([torch.zeros(32, 1, 2), old.weight], -1))
        longer.bias.copy_(old.bias)
    assert_same(block(x), expected)
    longer.register_forward_hook(lambda *_: None)
    assert_same(block(x), expected)


# peft's LoRA


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="no package peft: LoRA is not tested")


def with_lora(peft, block, names, **options):
    """-> the block, its layers of these names adapted; nothing of an adapter is zero."""
    config = peft.LoraConfig(target_modules=list(names), r=3, lora_alpha=6, init_lora_weights=False, **options)
    return peft.inject_adapter_in_model(config, block).double()


def lora_of(layer):
    return [next(iter(part.values())).weight for part in (layer.lora_A, layer.lora_B)]


def merged(block, names, x):
    """What the block gives with the adapters' matmuls added to its weights, by the fused op."""
    plain = block_of()
    weights = {name.replace(".base_layer", ""): p for name, p in block.named_parameters() if ".lora_" not in name}
    for name in names:
        A, B = lora_of(block.mixer.get_submodule(name))
        weights[f"mixer.{name}.weight"] = weights[f"mixer.{name}.weight"] + 2 * B @ A  # alpha / r
    return torch.func.functional_call(plain, weights, (x,))


@pytest.mark.parametrize("names", [*((name,) for name in LINEARS), LINEARS], ids=str)
def test_lora_works_on_every_linear_layer(peft, names):
    block = with_lora(peft, block_of(), names)
    adapters = [p for name in names for p in lora_of(block.mixer.get_submodule(name))]
    x = tokens().requires_grad_()
    with torch.no_grad():
        assert not torch.allclose(block(x), merged_without(block, x))  # it does something
    got, truth = (
        [y, *torch.autograd.grad(y.square().sum(), [x, *adapters])] for y in (block(x), merged(block, names, x))
    )
    for a, b in zip(got, truth, strict=True):
        assert_same(a, b)
        assert (a != 0).any()


def merged_without(block, x):
    return merged(block, (), x)


def test_lora_leaves_the_step_s_bias_in_float32(peft):
    """Beside a bias of -6.9, bfloat16 has no place for a step of 0.01."""
    block = with_lora(peft, block_of(), ["dt_proj"])
    with torch.no_grad():
        for parameter in lora_of(block.mixer.dt_proj):
            parameter.zero_()
        block.mixer.dt_proj.base_layer.bias.fill_(-6.9375)
        block.mixer.dt_proj.base_layer.weight.fill_(0.0078125)
    steps, half = [], block.bfloat16()
    half.mixer.dt_proj.register_forward_hook(lambda module, inputs, y: steps.append((inputs[0], y)))
    half(tokens().float())
    ((low, step),) = steps
    assert step.dtype == torch.float32
    # float32; the bias and the step in bfloat16 would be off by half a spacing of 0.03
    torch.testing.assert_close(step, (0.0078125 * low.float().sum(-1, keepdim=True) - 6.9375).expand_as(step))


def test_lora_under_autocast_is_near_float32(peft):
    block, x = with_lora(peft, block_of(), LINEARS).float(), tokens().float()
    exact = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert y.dtype == torch.float32
    assert (y - exact).norm() < 5e-2 * (exact - x).norm()  # some ten roundings of 2**-9


def test_lora_on_the_convolution_is_called(peft):
    """peft's adapter of a depthwise convolution takes a multiple of its groups for its rank."""
    block, x = block_of(), tokens()
    expected = block(x)
    config = peft.LoraConfig(target_modules=["conv1d"], r=32, lora_alpha=32)  # begins at nothing
    block = peft.inject_adapter_in_model(config, block).double()
    assert_same(block(x), expected)
    with torch.no_grad():
        for parameter in block.mixer.conv1d.lora_B.parameters():
            parameter.fill_(0.1)
    assert not torch.allclose(block(x), expected)


def test_a_mixer_alone_takes_adapters_too(peft):
    mixer, x = VimMixer(16, direction="ssm").double(), tokens()
    expected = mixer(x)
    config = peft.LoraConfig(target_modules=["x_proj"], r=2)
    mixer = peft.inject_adapter_in_model(config, mixer).double()
    assert_same(mixer(x), expected)  # the adapter begins at nothing


def test_a_convolution_that_computes_otherwise_is_called():
    """A subclass may change what `nn.Conv1d.forward` calls and leave that as it is."""

    class Doubled(nn.Conv1d):
        def _conv_forward(self, *arguments):
            return 2 * super()._conv_forward(*arguments)

    mixer, x = block_of().mixer, tokens()
    plain = mixer.conv1d
    width = plain.in_channels
    other = Doubled(width, width, plain.kernel_size, groups=width, dtype=plain.weight.dtype)
    other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(2)
    expected = mixer(x)
    mixer.conv1d = other
    assert_same(mixer(x), expected)
