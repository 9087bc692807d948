"""Blocks that are called again and again: what was read of them is kept, and never beyond a change."""

import copy
import pickle

import pytest
import torch
from torch import nn

from longvision.layers import VimBlock, run_at_once, set_fused
from longvision.ops.mixer import cpu
from support.scan_cases import needs_compiler

pytestmark = [pytest.mark.usefixtures("poison"), needs_compiler]


@pytest.fixture
def calls(monkeypatch):
    """How many blocks each call of the kernels went through."""
    asked, library = [], cpu.kernels_for(torch.float32)
    original = library.blocks_forward
    monkeypatch.setattr(library, "blocks_forward", lambda *call: (asked.append(call[1]), original(*call))[1])
    return asked


def make_blocks(count=3, dim=8, **options):
    torch.manual_seed(0)
    return nn.ModuleList([VimBlock(dim, state=4, **options) for _ in range(count)]).eval()


def run_blocks(blocks, x, *arguments):
    """As a model runs them."""
    at_once = run_at_once(blocks, x, *arguments)
    if at_once is not None:
        return at_once
    for block in blocks:
        x = block(x, *arguments)
    return x


def one_by_one(blocks, x, *arguments):
    """Of fresh copies, which nothing is known of."""
    for block in copy.deepcopy(blocks):
        x = block(x, *arguments)
    return x


def replaced(parameter):
    return nn.Parameter(parameter.detach() + 1)


def optimised(blocks):
    optimiser = torch.optim.SGD(blocks.parameters(), lr=0.1)
    with torch.enable_grad():
        run_blocks(blocks, torch.ones(1, 3, 8)).square().sum().backward()
    optimiser.step()


def swapped_data(blocks):
    blocks[1].mixer.in_proj.weight.data = blocks[1].mixer.in_proj.weight.data + 1


def plain_attribute(blocks):
    """As some wrappers do: the weight is no parameter any more."""
    linear = blocks[1].mixer.x_proj
    weight = linear.weight.detach() + 1
    del linear.weight
    linear.weight = weight


CHANGES = {
    "in place": lambda blocks: blocks[1].mixer.A_log.detach().add_(1),
    "data in place": lambda blocks: blocks[1].mixer.D.data.mul_(2),
    "other data": swapped_data,
    "a transposed one": lambda blocks: setattr(
        blocks[1].mixer.dt_proj.weight, "data", torch.ones(1, 16).t().contiguous().as_strided((16, 1), (1, 16))
    ),
    "load_state_dict": lambda blocks: blocks.load_state_dict({k: v + 1 for k, v in blocks.state_dict().items()}),
    "load_state_dict, assigned": lambda blocks: blocks.load_state_dict(
        {k: v + 1 for k, v in blocks.state_dict().items()}, assign=True
    ),
    "an optimiser": optimised,
    "another parameter": lambda blocks: setattr(blocks[1].norm, "weight", replaced(blocks[1].norm.weight)),
    "another layer": lambda blocks: setattr(blocks[1].mixer, "out_proj", nn.Linear(16, 8, bias=False)),
    "another mixer": lambda blocks: setattr(blocks[1], "mixer", make_blocks(3)[2].mixer),
    "no parameter any more": plain_attribute,
    "a setting": lambda blocks: setattr(blocks[1].norm, "eps", 1.0),
    "to float64 and back": lambda blocks: blocks.double().float(),
    "a bias": lambda blocks: setattr(blocks[1].mixer.in_proj, "bias", nn.Parameter(torch.ones(32))),
    "unfused": lambda blocks: set_fused(blocks[1], False),
    "a hook on a layer": lambda blocks: blocks[1].norm.register_forward_hook(lambda *call: call[-1] + 1),
    "a hook on a block": lambda blocks: blocks[1].register_forward_hook(lambda *call: call[-1] + 1),
    "another forward": lambda blocks: setattr(blocks[1].mixer.out_proj, "forward", lambda u: u[..., :8]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen_at_the_next_call(change):
    blocks, x = make_blocks(), torch.randn(2, 5, 8)
    with torch.no_grad():
        before = run_blocks(blocks, x)
        assert torch.equal(before, run_blocks(blocks, x))
        change(blocks)
        after, expected = run_blocks(blocks, x), one_by_one(blocks, x)
    assert torch.equal(after, expected)
    same = change in (CHANGES["to float64 and back"], CHANGES["unfused"])
    assert torch.allclose(after, before, atol=1e-6) == same
    with torch.no_grad():
        plain_again = run_blocks(blocks, x)
    assert torch.equal(plain_again, expected)


def test_what_is_no_parameter_is_read_anew_each_time():
    blocks, x = make_blocks(), torch.randn(2, 5, 8)
    plain_attribute(blocks)
    with torch.no_grad():
        for number in range(3):
            blocks[1].mixer.x_proj.weight = torch.full_like(blocks[1].mixer.x_proj.weight, number)
            assert torch.equal(run_blocks(blocks, x), one_by_one(blocks, x))


def test_stochastic_depth_begins_with_training():
    blocks, x = make_blocks(drop_path=0.999), torch.randn(1, 5, 8)
    with torch.no_grad():
        assert not torch.equal(run_blocks(blocks, x), x)
        assert torch.equal(run_blocks(blocks.train(), x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_together_as_one_by_one(dtype, packed, grad):
    blocks, x = make_blocks().to(dtype), torch.randn(1, 67, 8, dtype=torch.promote_types(dtype, torch.float32))
    arguments = [torch.tensor([0, 3, 40, 67])] if packed else []
    before = x.clone()
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            assert torch.equal(run_blocks(blocks, x, *arguments), one_by_one(blocks, x, *arguments))
    assert torch.equal(x, before)


def test_one_call_of_the_kernels_without_gradients(calls):
    blocks, x = make_blocks(), torch.randn(1, 5, 8)
    with torch.no_grad():
        run_blocks(blocks, x)
    with torch.inference_mode():
        run_blocks(blocks, x)
    run_blocks(blocks, x)
    assert calls == [3, 3, 1, 1, 1]


@pytest.mark.parametrize("also_stored", [False, True])
def test_a_stack_in_bfloat16_is_one_call_too(monkeypatch, also_stored):
    """Under autocast weights are read where they are; one block has them in bfloat16 already."""
    asked, library = [], cpu.kernels_for(torch.bfloat16)
    original = library.blocks_forward
    monkeypatch.setattr(library, "blocks_forward", lambda *call: (asked.append(call[1]), original(*call))[1])
    blocks, x = make_blocks(), torch.randn(2, 5, 8)
    if also_stored:
        for projection in (blocks[1].mixer.in_proj, blocks[1].mixer.out_proj):
            projection.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        at_once = run_blocks(blocks, x)
        assert asked == [3]
        assert torch.equal(at_once, one_by_one(blocks, x))


def test_blocks_that_differ_in_shape_are_called_one_by_one(calls):
    blocks = nn.ModuleList([VimBlock(8, state=4), VimBlock(8, state=5)]).eval()
    with torch.no_grad():
        run_blocks(blocks, torch.randn(1, 5, 8))
    assert calls == [1, 1]


def test_an_image_in_chunks_goes_through_block_by_block(calls, monkeypatch):
    monkeypatch.setattr(cpu, "LEAST", 4)
    blocks, x = make_blocks(), torch.randn(1, 5, 8)
    with torch.no_grad():
        assert torch.equal(run_blocks(blocks, x), one_by_one(blocks, x))
    assert set(calls) == {1}


def test_a_copy_knows_nothing_of_the_original():
    block, x = make_blocks(1)[0], torch.randn(1, 5, 8)
    expected = block(x)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(other(x), expected)
        with torch.no_grad():
            block.mixer.D.add_(1)
            assert torch.equal(other(x), expected)
            block.mixer.D.sub_(1)


@pytest.mark.parametrize("wrong", [
    lambda x: x[0], lambda x: x[..., :7], lambda x: x[:, :0], lambda x: x.to(torch.int32),
], ids=["two dimensions", "too narrow", "no tokens", "whole numbers"])  # fmt: skip
def test_wrong_tokens_are_refused_at_every_call(wrong):
    blocks, x = make_blocks(), torch.randn(1, 5, 8)
    with torch.no_grad():
        for _ in range(2):
            with pytest.raises((ValueError, TypeError), match="mixer got"):
                run_blocks(blocks, wrong(x))
            run_blocks(blocks, x)


def test_float64_tokens_of_a_float32_model():
    blocks, x = make_blocks(), torch.randn(1, 5, 8)
    with torch.no_grad():
        run_blocks(blocks, x)
        assert torch.equal(run_blocks(blocks, x.double()), one_by_one(blocks, x.double()))
        run_blocks(blocks, x)
