"""A block is x + mixer(norm(x)), skipped by chance in training."""

from itertools import pairwise

import pytest
import torch

from longvision.layers import VimBlock
from longvision.layers.mixer import DIRECTIONS
from longvision.ops.common import cu_seqlens_of
from longvision.ops.rms_norm.reference import rms_norm_reference


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("tokens", [1, 2, 17, 50])
def test_keeps_the_shape_and_adds(direction, tokens):
    block, x = VimBlock(32, direction=direction), torch.randn(2, tokens, 32)
    y = block(x)
    assert y.shape == x.shape and torch.isfinite(y).all()
    torch.testing.assert_close(y, x + block.mixer(block.norm(x)), rtol=0, atol=0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_packed_is_one_after_the_other(direction):
    block, x = VimBlock(32, direction=direction).double(), torch.randn(1, 30, 32, dtype=torch.float64)
    boundaries = [0, 3, 4, 30]
    separate = torch.cat([block(x[:, a:b]) for a, b in pairwise(boundaries)], 1)
    # float64, two orders of summation
    torch.testing.assert_close(block(x, torch.tensor(boundaries)), separate, rtol=0, atol=1e-12)


def test_drop_path_skips_whole_samples_in_training_only():
    block, x = VimBlock(32, drop_path=0.5), torch.randn(64, 3, 32)
    added = block.mixer(block.norm(x)).detach()
    torch.testing.assert_close(block.eval()(x), x + added, rtol=0, atol=0)
    change = (block.train()(x) - x).detach()
    skipped = (change == 0).flatten(1).all(1)
    assert 10 < skipped.sum() < 54  # 32 on average; six standard deviations of 4 are 24
    # what is kept counts twice, so that the mean stays; float32's rounding of x + change - x
    torch.testing.assert_close(change[~skipped], 2 * added[~skipped], rtol=1e-4, atol=1e-6)


def test_bf16_weights_with_a_float32_residual():
    block, x = VimBlock(32), torch.randn(2, 20, 32)
    truth = block(x) - x
    y = block.bfloat16()(x)
    assert y.dtype == torch.float32
    # What is added went through some ten roundings to bf16, 2**-9 each, of random sign.
    assert (y - x - truth).norm() < 10 * 2**-9 * truth.norm()
    assert block(x.bfloat16()).dtype == torch.bfloat16


def test_in_place_of_a_transformer_block():
    """timm's vision transformer takes it as `block_fn` would: same input, same output, under checkpointing too."""
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    vit.blocks = torch.nn.Sequential(*(VimBlock(192) for _ in range(2)))
    image = torch.randn(2, 3, 32, 32)
    plain = vit(image)
    vit.set_grad_checkpointing()
    assert plain.shape == (2, 3) and torch.equal(vit(image), plain)


@pytest.mark.parametrize("hooked", [False, True])
def test_a_block_hands_on_eps_and_boundaries(hooked):
    block, x = VimBlock(32).double(), torch.randn(1, 30, 32, dtype=torch.float64)
    block.norm.eps = 0.7
    for boundaries in (None, torch.tensor([0, 11, 30])):
        expected = x + block.mixer(rms_norm_reference(x, block.norm.weight, eps=0.7), boundaries)
        handle = block.norm.register_forward_hook(lambda *_: None) if hooked else None
        torch.testing.assert_close(block(x, boundaries), expected, rtol=0, atol=1e-12)  # float64
        if handle is not None:
            handle.remove()


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("residual", [torch.bfloat16, torch.float32], ids=str)
def test_a_block_gives_the_dtype_of_its_input(hooked, weights, residual):
    block = VimBlock(32).to(weights)
    if hooked:
        block.mixer.register_forward_hook(lambda *_: None)
    assert block(torch.randn(2, 9, 32, dtype=residual)).dtype == residual


def test_drop_path_skips_whole_images_of_a_packed_row():
    """Each by itself, in training only; what is not skipped is scaled so that the expectation stays."""
    block, lengths = VimBlock(8, drop_path=0.25).double(), [3, 1, 2, 5] * 50
    x, cu_seqlens = torch.randn(1, sum(lengths), 8, dtype=torch.float64), cu_seqlens_of(lengths, torch.device("cpu"))
    truth = block.eval()(x, cu_seqlens) - x
    skipped = []
    for _ in range(4):
        change = block.train()(x, cu_seqlens) - x
        for of_image, true in zip(change.split(lengths, dim=1), truth.split(lengths, dim=1), strict=True):
            skipped.append(bool((of_image == 0).all()))
            # float64's rounding of x + change - x
            torch.testing.assert_close(of_image, true * (0 if skipped[-1] else 1 / 0.75), rtol=1e-9, atol=1e-12)
    assert 120 < sum(skipped) < 290  # of 800, 200 in expectation: more than six standard deviations of 12


def test_a_block_with_drop_path_is_one_node_but_in_training():
    block, x = VimBlock(32, drop_path=0.5), torch.randn(2, 9, 32)
    mixer, norm = "longvision.mixer.default", "longvision.rms_norm.default"
    for training, nodes in ((False, [mixer]), (True, [norm, mixer])):
        program = torch.export.export(block.train(training), (x,))
        names = [str(node.target) for node in program.graph.nodes if "longvision" in str(node.target)]
        assert names == nodes
