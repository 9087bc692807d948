"""Models without ops of ours: the same values, and graphs of torch's own operators."""

import pytest
import timm
import torch
from timm.layers import create_feature_extractor
from torch import nn

from longvision.layers import VimBlock
from longvision.layers.mixer import DIRECTIONS
from longvision.models import Vim
from longvision.types import PackedImages


def small(**options):
    return Vim(**{"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 3, **options})


def ops_of_ours(targets):
    return [target for target in map(str, targets) if "longvision." in target and "<function" not in target]


def gradients(model, image):
    model.zero_grad()
    model(image).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_same_to_rounding(direction):
    model, image = small(direction=direction).double().eval(), torch.randn(2, 3, 16, 20, dtype=torch.float64)
    fused, of_fused = model(image), gradients(model, image)
    model.set_fused(False)
    # float64, two orders of summation
    torch.testing.assert_close(model(image), fused, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(gradients(model, image), of_fused, rtol=1e-9, atol=1e-12)


def test_packed_images_too():
    model = small().double()
    packed = PackedImages.from_images([torch.randn(3, *size, dtype=torch.float64) for size in ((8, 12), (16, 8))], 4)
    fused = model(packed)
    model.set_fused(False)
    torch.testing.assert_close(model(packed), fused, rtol=1e-11, atol=1e-13)


@pytest.mark.slow
def test_export_of_torch_s_operators_alone():
    model, image = small(depth=1, img_size=(8, 4)).eval(), torch.randn(2, 3, 8, 4)
    model.set_fused(False)
    program = torch.export.export(model, (image,))
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert targets and not ops_of_ours(targets)
    torch.testing.assert_close(program.module()(image), model(image), rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("options", [{}, {"pad": True, "cls_token": "double"}, {"pool": "max"}], ids=str)
def test_symbolic_trace(fused, options):
    """Of any model: at another size and batch too, and gradients reach the model's own parameters."""
    model = small(**options).double().eval()
    model.set_fused(fused)
    graph = torch.fx.symbolic_trace(model)
    assert not ops_of_ours(node.target for node in graph.graph.nodes)
    for size in ((16, 16), (24, 12)):
        image = torch.randn(3, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(graph(image), model(image), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(gradients(graph, image), gradients(model, image), rtol=1e-9, atol=1e-12)


def test_timm_s_extraction_takes_blocks_whole():
    """So that it computes what the model computes, bit for bit."""
    model, image = small().eval(), torch.randn(2, 3, 16, 16)
    graph = create_feature_extractor(model, ["layers.0", "norm_f", "head"])
    features = graph(image)
    assert torch.equal(features["head"], model(image))
    assert torch.equal(features["norm_f"], model.forward_features(image))
    assert torch.equal(features["layers.0"], model.layers[0](model.embed(image)[0]))
    maps = timm.create_model("vim_nano_patch4_32", depth=3, features_only=True, feature_cls="fx", out_indices=(0, 2))
    assert [tuple(map_BMD.shape) for map_BMD in maps(torch.randn(1, 3, 32, 32))] == [(1, 65, 128)] * 2


def test_a_block_elsewhere_is_traced_too():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = VimBlock(16)

        def forward(self, x_BMD):
            return self.block(x_BMD * 2)

    model, x_BMD = Other().double(), torch.randn(2, 7, 16, dtype=torch.float64)
    graph = torch.fx.symbolic_trace(model)
    assert not ops_of_ours(node.target for node in graph.graph.nodes)
    torch.testing.assert_close(graph(x_BMD), model(x_BMD), rtol=1e-11, atol=1e-13)
    assert torch.equal(create_feature_extractor(model, ["block"])(x_BMD)["block"], model(x_BMD))
