"""VMamba against the authors' published code (golden files), and as a backbone."""

from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2

from longvision.errors import UserError
from longvision.models import NAMES, VMamba
from longvision.models.cost import measure_cost
from support.golden import golden, relative
from support.vmambas import BOTH, TINY, V0, from_file

GOLDEN = ["vmamba_s1_64x32", "vmamba_s1_ln_32x32", "vmamba_s2_40x56", "vmamba_v0_40x56"]


def released(shared, name):
    """-> the authors' arguments as ours, weights by name, and the file's tensors."""
    tensors, metadata = golden(shared, name)
    config = metadata["config"]
    ours = {"embed_dim": config["dims"], "depths": config["depths"], "state": config["ssm_d_state"], "num_classes": 10}
    ours |= {"ssm_ratio": config["ssm_ratio"], "mlp_ratio": config["mlp_ratio"]}
    ours["version"] = config["forward_type"].removesuffix("_noz")
    return ours, of_kind(tensors, "weights."), tensors


def of_kind(tensors, prefix):
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_authors_code(name, shared, tmp_path):
    """Logits, loss, maps and every gradient, from a file as theirs are; float32 in another order."""
    options, weights, tensors = released(shared, name)
    torch.save({"model": weights, "epoch": 3}, tmp_path / "released.pth")
    model = from_file(tmp_path / "released.pth", **options).eval()
    assert model.state_dict().keys() == weights.keys()
    image = tensors["image"].clone().requires_grad_()
    logits = model(image)
    F.cross_entropy(logits, tensors["label"]).backward()
    assert relative(logits, tensors["logits"]) <= 1e-5
    expected, found = of_kind(tensors, "grad."), {key: p.grad for key, p in model.named_parameters()}
    assert expected.keys() == found.keys()
    together, truth = (torch.cat([by_name[key].flatten() for key in expected]) for by_name in (found, expected))
    assert relative(together, truth) <= 1e-5
    for key, gradient in expected.items():
        assert relative(found[key], gradient) <= 1e-3 or gradient.norm() == found[key].norm() == 0, key
    assert relative(image.grad, tensors["grad_image"]) <= 1e-5
    channels_last = name in GOLDEN[1::2]  # of the authors' two layouts
    maps = model.forward_intermediates(image, output_fmt="NHWC" if channels_last else "NCHW", intermediates_only=True)
    for number, map_ in enumerate(maps):
        assert relative(map_, tensors[f"act.layers.{number}.blocks"]) <= 1e-5


PARAMETERS = {
    "vmamba_tiny_s1l8_224": 30_249_064,
    "vmamba_small_s1l20_224": 49_012_840,
    "vmamba_base_s1l20_224": 86_614_504,
    "vmamba_tiny_s2l5_224": 30_705_832,
    "vmamba_small_s2l15_224": 50_147_752,
    "vmamba_base_s2l15_224": 88_557_800,
    "vmamba_tiny_v0_224": 22_893_448,
    "vmamba_small_v0_224": 44_417_416,
    "vmamba_base_v0_224": 76_254_056,
}


@pytest.mark.parametrize("name, parameters", PARAMETERS.items())
def test_as_many_parameters_as_published(name, parameters):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.pretrained_cfg["num_classes"] == model.num_classes == 1000 and model.pretrained_cfg["url"]
    assert PARAMETERS.keys() == {name for name in NAMES if name.startswith("vmamba")}


def test_what_a_scan_costs():
    """4 N + 2 multiply-adds a pixel, channel and direction."""
    one, four = (measure_cost("vmamba_tiny_s1l8_224", 32, 32, depths=(1,), embed_dim=8, state=N) for N in (1, 4))
    assert one.scan_macs == 4 * 64 * 8 * (4 + 2) and four.scan_macs == 4 * 64 * 8 * (16 + 2)
    cost = measure_cost("vmamba_tiny_s1l8_224", 224, 224)
    assert cost.macs / 1e9 == pytest.approx(4.9, abs=0.05)  # the authors', who count the scan in another way


@BOTH
@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (4, 5), (64, 4)], ids=str)
def test_any_size(options, size):
    model = VMamba(**TINY, **options).eval()
    maps = model.forward_intermediates(torch.randn(1, 3, *size), intermediates_only=True)
    sides = [tuple(map_BCHW.shape[2:]) for map_BCHW in maps]
    first = tuple(-(-side // 4) if not options else side // 4 for side in size)
    assert sides[0] == first
    assert all(half == tuple(-(-side // 2) for side in whole) for whole, half in pairwise(sides))


@pytest.mark.parametrize(
    "options, image, expected",
    [
        ({"version": "v2"}, None, "version='v2'"),
        ({"embed_dim": 0}, None, "embed_dim 0"),
        ({"depths": (2, 0)}, None, r"depths\[1\] 0"),
        ({"depths": ()}, None, "stages 0"),
        ({"state": 0}, None, "state 0"),
        ({"ssm_ratio": 0}, None, "ssm_ratio 0"),
        ({"mlp_ratio": -1}, None, "mlp_ratio -1"),
        ({"ssm_ratio": "2"}, None, "ssm_ratio '2'"),
        ({"mlp_ratio": None}, None, "mlp_ratio None"),
        ({"depths": 8}, None, "depths 8"),
        ({"depths": "2282"}, None, "depths '2282'"),
        ({"drop_path_rate": 1.0}, None, "drop_path_rate 1.0"),
        ({}, (1, 1, 32, 32), r"\(1, 1, 32, 32\)"),
        (V0, (1, 3, 3, 32), "3x32.* 4 pixels"),
        ({}, (1, 3, 0, 32), "0x32.* 1 pixel"),
    ],
    ids=str,
)
def test_what_raises(options, image, expected):
    with pytest.raises(UserError, match=expected):
        VMamba(**{**TINY, **options})(torch.zeros(image or (1, 3, 32, 32)))


@BOTH
def test_layers_for_optimisers(options):
    """Each block faster than the one before, what halves a map as the block before it; the scans do not decay."""
    model = VMamba(**TINY, **options)
    spared = model.no_weight_decay()
    assert {name.rpartition(".")[2] for name in spared} == {"A_logs", "Ds", "dt_projs_bias"}
    groups = create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5).param_groups
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    of = {name: scale[id(p)] for name, p in model.named_parameters()}
    order = ["patch_embed.0.weight", *(f"layers.{i}.blocks.{j}.op.Ds" for i, j in
             ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))), "classifier.head.weight"]  # fmt: skip
    assert [of[name] for name in order] == [0.5**k for k in range(6, -1, -1)]
    assert of["layers.2.blocks.1.op.Ds"] == next(v for k, v in of.items() if k.startswith("layers.2.downsample"))
    assert of["layers.3.blocks.0.op.Ds"] == of["classifier.norm.weight"]
    coarse = model.group_matcher(coarse=True)["blocks"]
    assert coarse[0][0] == r"^layers\.(\d+)"


@BOTH
def test_checkpointing_computes_the_same(options):
    model, image = VMamba(**TINY, **options, drop_path_rate=0.3).train(), torch.randn(2, 3, 32, 32)
    rates = [block.drop_path.drop_prob for stage in model.layers for block in list(stage.blocks)[1:]]
    assert rates == pytest.approx([0.3 * 3 / 4])  # of the fourth of five blocks; the others are the first of stages
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)
        model(image).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@BOTH
def test_stages_that_nobody_asks_for_are_not_there(options):
    """No parameter stays without a gradient, which would stop distributed training."""
    model = timm.create_model("vmamba_tiny_s1l8_224", features_only=True, out_indices=(0, 2), **TINY, **options)
    maps = model(torch.randn(1, 3, 32, 32))
    assert [tuple(map_BCHW.shape) for map_BCHW in maps] == [(1, 8, 8, 8), (1, 32, 2, 2)]
    sum(map_BCHW.square().sum() for map_BCHW in maps).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert len(model.model.layers) == 3


@torch.no_grad()
def test_the_last_map_alone_is_normalised():
    model = VMamba(**TINY).eval()
    image = torch.randn(1, 3, 64, 64)
    plain, normed = (model.forward_intermediates(image, norm=norm, output_fmt="NHWC") for norm in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain[1][:3], normed[1][:3]))
    assert torch.equal(normed[1][3], plain[0]) and torch.equal(model.classifier.norm(plain[1][3]), plain[0])
    early = model.forward_intermediates(image, indices=[1], stop_early=True)
    assert early[0].shape == (1, 8, 8, 16)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@BOTH
def test_half_precision(options, dtype):
    """Pure, and in mixed precision; the residual stays in float32, maps for heads are in the weights' dtype."""
    model, image = VMamba(**TINY, **options).eval(), torch.randn(2, 3, 32, 32)
    truth = model(image)
    with torch.autocast("cpu", dtype):
        mixed, residual = model(image), model.layers[0](model.embed(image)[0])
    assert residual.dtype == torch.float32
    half = model.to(dtype)
    pure, maps = half(image.to(dtype)), half.forward_intermediates(image.to(dtype), intermediates_only=True)
    assert half.embed(image.to(dtype))[0].dtype == torch.float32 and maps[1].dtype == dtype
    for logits in (mixed.float(), pure.float()):
        assert relative(logits, truth) < 0.05


@torch.inference_mode()
def test_large_maps_go_through_the_mlp_in_chunks(monkeypatch):
    """The same to rounding; a hook sees the whole map."""
    block, x_BHWD, seen = VMamba(**TINY).eval().layers[0].blocks[0], torch.randn(2, 5, 7, 8), []
    whole = block(x_BHWD)
    monkeypatch.setattr("longvision.layers.vss_block.CHUNK", 16)
    ran = []
    monkeypatch.setattr(F, "gelu", lambda x, gelu=F.gelu, **how: ran.append(len(x)) or gelu(x, **how))
    torch.testing.assert_close(block(x_BHWD), whole, rtol=1e-5, atol=1e-6)
    assert ran == [16, 16, 16, 16, 6]
    block.mlp.act.register_forward_hook(lambda _, __, y: seen.append(tuple(y.shape)))
    assert torch.equal(block(x_BHWD), whole) and seen == [(2, 5, 7, 32)]


# Graph tools


@pytest.mark.slow
@BOTH
def test_graphs(options):
    """torch.compile and torch.export give what the model gives."""
    model, image = VMamba(**TINY, **options).double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    truth = model(image)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for other in (compiled, torch.export.export(model, (image,)).module()):
        torch.testing.assert_close(other(image), truth, rtol=1e-10, atol=1e-11)
