"""VMamba against the authors' published code (golden files), its files, and what takes its maps."""

import sys
import types
from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2

from longvision.errors import UserError
from longvision.models import NAMES, VMamba
from longvision.models.backbone import create_features
from longvision.models.cost import measure_cost
from longvision.models.weights.files import check_fits
from longvision.models.weights.hub import UnreachableWeights
from longvision.models.weights.identify import identify, nearest
from support.golden import golden, relative

GOLDEN = ["vmamba_s1_64x32", "vmamba_s1_ln_32x32", "vmamba_s2_40x56", "vmamba_v0_40x56"]
TINY = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_classes": 5}
V0 = {"version": "v0", "state": 4, "ssm_ratio": 2.0, "mlp_ratio": 0.0}
BOTH = pytest.mark.parametrize("options", [{}, V0], ids=["v05", "v0"])


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


def from_file(path, name="vmamba_tiny_s1l8_224", **options):
    overlay = {"file": str(path), "num_classes": 10}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)


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


# Files


class Node(dict):
    """As yacs's, which the authors' training saves beside the weights."""

    def __init__(self, **content):
        super().__init__(**content)
        self.__dict__["__deprecated_keys__"] = set()


@pytest.mark.parametrize("key", ["model", "model_ema"])
def test_what_the_authors_training_saves(key, tmp_path, monkeypatch):
    source = VMamba(**TINY)
    Node.__module__, Node.__qualname__, Node.__name__ = "yacs.config", "CfgNode", "CfgNode"
    yacs = types.ModuleType("yacs.config")
    yacs.CfgNode = Node
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", yacs)
        beside = {"config": Node(MODEL=Node(NAME="vssm", DEPTHS=[2, 2, 5, 2])), "max_accuray_ema": 82.6, "epoch": 262}
        torch.save({key: source.state_dict(), **beside}, tmp_path / "released.pth")
    model = from_file(tmp_path / "released.pth", **TINY)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_model_is_taken_where_an_average_is_beside_it(tmp_path, caplog):
    source, average = VMamba(**TINY), VMamba(**TINY)
    torch.save({"model_ema": average.state_dict(), "model": source.state_dict()}, tmp_path / "both.pth")
    with caplog.at_level("INFO"):
        model = from_file(tmp_path / "both.pth", **TINY)
    assert torch.equal(model.classifier.head.weight, source.classifier.head.weight)
    assert "model_ema" in caplog.text


def test_the_authors_model_in_one_file(tmp_path):
    """It has the projections of all directions in one matrix."""
    source, found = VMamba(**TINY), {}
    for name, tensor in source.state_dict().items():
        together = name.endswith(("x_proj_weight", "dt_projs_weight"))
        found[name.replace("_weight", ".weight") if together else name] = tensor.flatten(0, 1) if together else tensor
    torch.save({"model": found}, tmp_path / "one.pth")
    model = from_file(tmp_path / "one.pth", **TINY)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


@BOTH
def test_older_names_and_shapes(options, tmp_path):
    source = VMamba(**TINY, **options)
    older = {}
    for name, tensor in source.state_dict().items():
        if options:
            name = name.replace("patch_embed.0", "patch_embed.proj").replace("patch_embed.2", "patch_embed.norm")
        name = name.replace(".op.", ".self_attention.").replace("classifier.", "")
        name = name.replace(".norm.", ".ln_1.") if ".blocks." in name else name
        older[name] = tensor[:, :, None, None] if name.endswith(("_proj.weight", "fc1.weight")) else tensor
    torch.save({"model": older}, tmp_path / "older.pth")
    model = from_file(tmp_path / "older.pth", **TINY, **options)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_files_load_strictly(tmp_path):
    weights = VMamba(**TINY).state_dict()
    del weights["layers.1.blocks.0.op.Ds"]
    torch.save({"model": weights}, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"layers\.1\.blocks\.0\.op\.Ds is missing"):
        from_file(tmp_path / "short.pth", **TINY)
    torch.save({"model": VMamba(**TINY, **V0).state_dict()}, tmp_path / "first.pth")
    with pytest.raises(UserError, match=r"patch_embed\.5\.weight is missing"):
        from_file(tmp_path / "first.pth", **TINY)


@pytest.mark.parametrize("name", ["vmamba_tiny_s1l8_224", "vmamba_base_s2l15_224", "vmamba_small_v0_224"])
def test_the_variant_of_a_file_is_known(name):
    """Also by its older names."""
    with torch.device("meta"):
        weights = timm.create_model(name, num_classes=7).state_dict()
    older = {key.replace("classifier.", "").replace(".0.norm.", ".0.ln_1."): value for key, value in weights.items()}
    for each in (weights, older):
        assert identify(each, "a.pth").name == nearest(each).name == name
    del weights["layers.0.blocks.0.norm.weight"]
    with pytest.raises(UserError, match=rf"a\.pth is of none .*{name}.*layers\.0\.blocks\.0\.norm\.weight is missing"):
        identify(weights, "a.pth")


def test_a_file_of_another_variant(tmp_path):
    """The message names it."""
    name = "vmamba_tiny_s2l5_224"
    with torch.device("meta"):
        model = timm.create_model(name)
    weights = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in model.state_dict().items()}
    with torch.device("meta"):
        other = timm.create_model("vmamba_tiny_s1l8_224")
    with pytest.raises(UserError, match=rf"a\.pth.*layers\.2\.blocks\.5\..*{name}"):
        check_fits(weights, other, "a.pth")


def test_weights_from_the_authors_releases(tmp_path, monkeypatch):
    """Fetched by the address that timm's configuration has; its # is no part of an address unless it is quoted."""
    source, asked = VMamba(**TINY, **V0), []
    torch.save({"model": source.state_dict()}, tmp_path / "released.pth")

    def fetch(url, **_):
        asked.append(url)
        return str(tmp_path / "released.pth")

    monkeypatch.setattr("longvision.models.weights.hub.download_cached_file", fetch)
    first = TINY | V0 | {"pretrained_cfg_overlay": {"num_classes": 5}}
    model = timm.create_model("vmamba_tiny_v0_224", pretrained=True, **first)
    assert torch.equal(model.classifier.head.weight, source.classifier.head.weight)
    releases = "https://github.com/MzeroMiko/VMamba/releases/download"
    assert asked == [f"{releases}/%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth"]

    def fail(url, **_):
        raise OSError("no network")

    monkeypatch.setattr("longvision.models.weights.hub.download_cached_file", fail)
    with pytest.raises(
        UnreachableWeights, match=r"vmamba_base_s1l20_224\.in1k .*vssm1_base_0229s_ckpt_epoch_225.*file="
    ):
        timm.create_model("vmamba_base_s1l20_224", pretrained=True, **TINY)
    with pytest.raises(UserError, match="depths 8"):
        timm.create_model("vmamba_base_s1l20_224", depths=8)


# The models


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


# What takes its maps


def check_backward(model, loss):
    loss.backward()
    assert loss.isfinite()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@BOTH
def test_segmentation_models_pytorch(options):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.FPN("tu-vmamba_tiny_s1l8_224", encoder_weights=None, classes=5, **TINY_MAPS, **options)
    logits = model(torch.randn(2, 3, 96, 128))
    assert logits.shape == (2, 5, 96, 128)
    check_backward(model, logits.square().mean())


TINY_MAPS = {key: value for key, value in TINY.items() if key != "num_classes"}


@BOTH
def test_features_for_heads(options):
    """Maps of strides 4 to 32 without a pyramid."""
    model = create_features("vmamba_tiny_s1l8_224", 1, (64, 64), args={**TINY_MAPS, **options})
    assert model.feature_info.reduction() == [4, 8, 16, 32] and model.feature_info.channels() == [8, 16, 32, 64]
    maps = model(torch.randn(1, 1, 64, 96))
    assert [tuple(map_BCHW.shape[2:]) for map_BCHW in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert maps[0].is_contiguous(memory_format=torch.channels_last)


def scene():
    from longvision.types import Target

    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [30.0, 20.0, 60.0, 60.0]])
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 4:40, 4:30] = masks[1, 20:60, 30:60] = True
    return [torch.randn(3, 64, 64)], [Target(boxes, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool), masks)]


@pytest.mark.parametrize("head", ["upernet", "fpn", "cascade", "detr"])
def test_heads_of_all_tasks(head):
    """Every parameter gets a gradient."""
    pytest.importorskip("transformers")
    pytest.importorskip("scipy")
    pytest.importorskip("segmentation_models_pytorch")
    from longvision.heads.detection import create_detector
    from longvision.heads.detr import create_detr
    from longvision.heads.segmentation import create_segmenter

    name, args = "vmamba_tiny_s1l8_224", TINY_MAPS
    if head == "detr":
        model = create_detr(name, 2, 3, (64, 64), args=args, queries=5, width=16, layers=1)
    elif head == "cascade":
        model = create_detector(name, classes=2, size=(64, 64), masks=True, args=args, width=16)
    else:
        model = create_segmenter(name, head, 5, 3, (64, 64), args=args, width=64)
    if head in ("cascade", "detr"):
        return check_backward(model, sum(model(*scene()).values()))
    images = torch.randn(2, 3, 50, 70)
    logits, auxiliary = model(images)
    assert logits.shape == (2, 5, 50, 70)
    check_backward(model, logits.square().mean() + auxiliary.square().mean())
