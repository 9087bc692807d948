"""The unfused path: torch's own operators alone, the same values, and graphs that tools can read."""

import pytest
import torch

from longvision.layers import RMSNorm, VimBlock, mixer, norm, set_fused
from longvision.layers.mixer import DIRECTIONS
from longvision.ops.selective_scan.parallel import selective_scan_parallel
from longvision.ops.selective_scan.reference import selective_scan_reference


def value_and_grads(block, x, *arguments):
    x = x.detach().requires_grad_()
    y = block(x, *arguments)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])]


def assert_near(got, truth, tolerance=1e-13):
    """float64, two orders of summation: some roundings of 1e-16 of the largest value."""
    for a, b in zip(got, truth, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def both_ways(block, *arguments):
    """-> fused, and unfused."""
    fused = value_and_grads(block, *arguments)
    set_fused(block, False)
    return fused, value_and_grads(block, *arguments)


def names_of_ours(graph):
    return [str(node.target) for node in graph.nodes if "longvision" in str(node.target)]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("tokens", [1, 9, 197])
def test_it_gives_the_same(direction, tokens):
    block = VimBlock(16, direction=direction, reverse=direction == "layer").double()
    assert_near(*both_ways(block, torch.randn(2, tokens, 16, dtype=torch.float64)))


@pytest.mark.parametrize("direction", ["none", "layer", "ssm_conv"])
def test_packed_it_gives_the_same(direction):
    block = VimBlock(16, direction=direction, reverse=direction == "layer").double()
    boundaries = torch.tensor([0, 1, 3, 20, 85], dtype=torch.int32)
    assert_near(*both_ways(block, torch.randn(1, 85, 16, dtype=torch.float64), boundaries))


def test_bf16_weights_keep_the_residual_in_float32():
    block, x = VimBlock(16).bfloat16(), torch.randn(2, 33, 16)
    fused, unfused = both_ways(block, x)
    assert unfused[0].dtype == torch.float32
    # What is added went through some ten roundings to bf16, 2**-9 each, of random sign, on each of the ways.
    assert (fused[0] - unfused[0]).norm() < 20 * 2**-9 * (fused[0] - x).norm()


def test_float16_sums_over_channels_do_not_overflow():
    """The gradient of B and C: 2**16 is beyond float16."""
    block = VimBlock(128, direction="none").half()
    set_fused(block, False)
    with torch.no_grad():
        block.mixer.out_proj.weight.mul_(64)
    _, *grads = value_and_grads(lambda_of(block), torch.randn(1, 9, 128).half())
    assert all(torch.isfinite(grad).all() for grad in grads)


class lambda_of:
    """A block whose output is made small: so the gradients that come back are."""

    def __init__(self, block):
        self.block = block

    def __call__(self, x):
        return self.block(x) / 64

    def parameters(self):
        return self.block.parameters()


def test_all_parts_are_switched_and_back():
    model = torch.nn.Sequential(VimBlock(16), RMSNorm(16))
    set_fused(model, False)
    assert not any(module.fused for module in model.modules() if hasattr(module, "fused"))
    set_fused(model)
    assert all(module.fused for module in model.modules() if hasattr(module, "fused"))


@pytest.mark.parametrize("part, reference", [("norm", norm), ("mixer", mixer)], ids=["norm", "mixer"])
def test_a_part_alone_is_switched(monkeypatch, part, reference):
    """The block is one op no longer: that part runs in plain torch."""
    block, x = VimBlock(16).double().eval(), torch.randn(2, 9, 16, dtype=torch.float64)
    truth, called = block(x), []
    name = {"norm": "rms_norm_reference", "mixer": "selective_scan_parallel"}[part]
    plain = getattr(reference, name)
    monkeypatch.setattr(reference, name, lambda *given, **named: called.append(name) or plain(*given, **named))
    assert_near([block(x)], [truth])
    assert not called
    set_fused(getattr(block, part), False)
    assert_near([block(x)], [truth])
    assert called


@pytest.mark.parametrize("direction", ["layer", "ssm_conv"])
def test_torch_fx_traces_it_for_any_number_of_tokens(direction):
    block = VimBlock(16, direction=direction, reverse=direction == "layer", drop_path=0.1).double().eval()
    traced = torch.fx.symbolic_trace(block, concrete_args={"cu_seqlens": None})
    for tokens in (1, 8, 77):
        x = torch.randn(2, tokens, 16, dtype=torch.float64)
        assert_near([traced(x)], [block(x)])
    assert not any(isinstance(node.target, torch._ops.OpOverload) for node in traced.graph.nodes)


def test_an_exported_block_has_none_of_our_ops():
    block, x = VimBlock(16, direction="none").eval(), torch.randn(2, 9, 16)
    set_fused(block, False)
    program = torch.export.export(block, (x,))
    assert names_of_ours(program.graph) == []
    torch.testing.assert_close(program.module()(x), block(x), rtol=1e-6, atol=1e-6)  # float32


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("tokens, boundaries", [(1, None), (8, None), (9, None), (130, None), (40, [0, 1, 8, 9, 40])])
def test_the_scan_without_a_loop_over_tokens(tokens, boundaries, reverse):
    """Chunks of 8 tokens: less than one, one, more, and more of the next level; against the equations."""
    x, delta, B, C = (torch.randn(1, tokens, n, dtype=torch.float64) for n in (3, 3, 2, 2))
    A, D, bias = -torch.rand(3, 2, dtype=torch.float64), torch.randn(3).double(), torch.randn(3).double()
    options = {"delta_bias_E": bias, "delta_softplus": True, "reverse": reverse}
    options["cu_seqlens"] = None if boundaries is None else torch.tensor(boundaries)
    tensors = [t.requires_grad_() for t in (x, delta, A, B, C, D)]

    def run(scan):
        y = scan(*tensors, **options)
        return [y, *torch.autograd.grad(y.square().sum(), tensors)]

    assert_near(run(selective_scan_parallel), run(selective_scan_reference))


def test_decays_of_a_thousand_tokens_neither_overflow_nor_vanish_early():
    """A decay of e^-20 a token: nothing may divide by their product."""
    ones = torch.ones(1, 1000, 1)
    y = selective_scan_parallel(ones, 20 * ones, -torch.ones(1, 1), ones, ones, torch.zeros(1))
    torch.testing.assert_close(y, torch.full_like(y, 20.0))  # 20 (1 + e^-20 + …), e^-20 is 2e-9
