"""What timm's own tests ask of every model in its registry, asked of all of ours, and of two that are added here.

After tests/test_models.py of timm 1.0.31; at a small size, since the code is the same.
"""

import copy
import pickle
import re

import pytest
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import create_feature_extractor
from timm.models import FeatureInfo
from timm.optim import create_optimizer_v2

from longvision.errors import UserError
from longvision.models import NAMES
from longvision.models.backbone import create_backbone
from longvision.models.published import licence, published_top_1
from longvision.models.weights.files import save_weights
from longvision.types import PackedImages
from support import backbones  # noqa: F401 registers its two

ADDED = ["tiny_transformer_patch4_16", "tiny_maps_16"]
ALIKE = re.compile("vmamba_(small|base)")  # at the size that is tested they are what the tiny ones are
KINDS = [
    "arm_tiny_patch16_224", "deepvit_16", "deepvit_s", "localvim_tiny_patch16_224", "localvim_small_patch16_224",
    "mambareg_small_patch16_224", "navit_tiny_patch16", "vim_nano_patch4_32", "vit_nano_patch4_32",
    "vmamba_tiny_s1l8_224", "vmamba_tiny_v0_224",
]  # fmt: skip
ONE_A_KIND = pytest.mark.parametrize("name", KINDS)
EVERY = pytest.mark.parametrize("name", [name for name in NAMES if not ALIKE.match(name)] + ADDED)


def small(name, **options):
    """As a user would make it."""
    if name == "tiny_maps_16":
        return timm.create_model(name, **options)
    if name.startswith("vmamba"):
        return timm.create_model(name, **{"depths": (1, 1, 1), "embed_dim": 16, **options})
    side = 16 if "patch4" in name else 64
    heads = {"num_heads": 4} if "vit" in name else {}
    return timm.create_model(name, **{"depth": 3, "embed_dim": 16, "img_size": side, **heads, **options})


def image_for(name, batch=2, channels=3):
    return torch.randn(batch, channels, *([16, 16] if name in ADDED or "patch4" in name else [64, 64]))


@EVERY
@torch.no_grad()
def test_forward(name):
    model, image = small(name).eval(), image_for(name)
    logits = model(image)
    assert logits.shape == (2, model.num_classes) and logits.isfinite().all()
    model.set_grad_checkpointing()
    assert torch.equal(model(image), logits)


@EVERY
@pytest.mark.parametrize("checkpointing", [False, True])
def test_backward(name, checkpointing):
    model = small(name, num_classes=42).train()
    model.set_grad_checkpointing(checkpointing)
    logits = model(image_for(name))
    logits.mean().backward()
    assert logits.shape == (2, 42)
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@EVERY
@torch.no_grad()
def test_features_head_and_classifier(name):
    model, image = small(name).eval(), image_for(name)
    assert model.num_features > 0 and model.head_hidden_size > 0
    features = model.forward_features(image)
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape[-1] == model.num_features and pooled.shape == (2, model.head_hidden_size)
    assert torch.equal(model.forward_head(features), model(image))
    assert torch.equal(model.get_classifier()(pooled), model(image))

    pool = model.global_pool
    model.reset_classifier(7)
    assert model(image).shape == (2, 7) and model.num_classes == model.get_classifier().out_features == 7
    model.reset_classifier(0)
    assert model.num_classes == 0 and model.global_pool == pool and torch.equal(model(image), pooled)
    model.reset_classifier(0, "avg")
    assert model.global_pool == "avg" and model(image).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model.global_pool == "" and torch.equal(model(image), features)
    assert small(name, num_classes=0).eval()(image).shape == pooled.shape
    bare = small(name, num_classes=0, global_pool="").eval()
    assert torch.equal(bare(image), bare.forward_features(image))


@EVERY
def test_the_configuration_names_its_layers(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    cfg, names = model.pretrained_cfg, model.state_dict().keys()
    assert cfg["classifier"] + ".weight" in names and cfg["first_conv"] + ".weight" in names
    assert cfg["num_classes"] == model.num_classes and model.default_cfg is cfg
    assert all(p.is_meta for p in model.parameters())
    assert model(torch.empty(1, *cfg["input_size"], device="meta")).shape == (1, model.num_classes)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_authors_state(name):
    """How images are shown at evaluation, what of the weights is known, and on which terms they are."""
    cfg, family = timm.get_pretrained_cfg(name), name.split("_")[0]
    half, imagenet = (0.5, 0.5, 0.5), (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert (cfg.mean, cfg.std) == ((half, half) if family == "deepvit" else imagenet) and cfg.interpolation == "bicubic"
    crops = {"deepvit": 1.0 if "384" in name else 0.9, "mambareg": 1.0, "navit": 1.0, "vmamba": 0.875}
    assert cfg.crop_pct == crops.get(family, 1.0 if "nano" in name else 0.875)
    assert cfg.crop_mode == ("squash" if family == "arm" else "center")
    with_weights = family in ("vim", "vmamba") or name in ("mambareg_small_patch16_224", "mambareg_base_patch16_224",
        "mambareg_large_patch16_224", "localvim_tiny_patch16_224")  # fmt: skip
    assert bool(cfg.has_weights) == (with_weights and "nano" not in name)
    assert not cfg.has_weights or published_top_1(cfg) > 75
    licences = {"vim": "apache-2.0", "localvim": "apache-2.0", "vmamba": "mit", "deepvit": "mit"}
    stated = cfg.has_weights or published_top_1(cfg) is not None
    assert licence(cfg) == (licences.get(family, "none stated") if stated else "-")


@EVERY
@torch.no_grad()
def test_features_only(name):
    model, image = small(name, features_only=True, feature_cls="getter").eval(), image_for(name)
    maps = model(image)
    assert len(maps) == len(model.feature_info.channels()) == 3
    for map_BCHW, channels, stride in zip(maps, model.feature_info.channels(), model.feature_info.reduction()):
        assert map_BCHW.shape[:2] == (2, channels) and map_BCHW.isfinite().all()
        assert all(n - side / stride <= 1 for n, side in zip(map_BCHW.shape[2:], image.shape[2:]))
    chosen = small(name, features_only=True, out_indices=(0, -1))
    assert [len(chosen(image)), chosen.feature_info.module_name()[0][-1]] == [2, "0"]


@EVERY
@torch.no_grad()
@pytest.mark.parametrize("feature_cls", ["fx", "hook"])
def test_features_of_the_modules_that_make_them(name, feature_cls):
    """What `forward_intermediates` gives, in the format that is said: maps, or all tokens."""
    model = small(name, features_only=True, feature_cls=feature_cls, out_indices=(0, 1, 2)).eval()
    whole, image = small(name, num_classes=0).eval(), image_for(name)
    inside = {key.partition(".")[2]: tensor for key, tensor in model.state_dict().items()}
    whole.load_state_dict({**whole.state_dict(), **{key: w for key, w in inside.items() if key in whole.state_dict()}})
    truth = whole.forward_intermediates(image, output_fmt=whole.formats[-1], intermediates_only=True)
    for found, expected in zip(model(image), truth, strict=True):
        if hasattr(whole, "tokens"):
            found, _ = whole.tokens.extract(found)
        else:
            assert model.output_fmt == "NHWC"
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@EVERY
@torch.no_grad()
def test_forward_intermediates(name):
    model, image = small(name).eval(), image_for(name)
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    final, maps = model.forward_intermediates(image, output_fmt="NCHW")
    assert [map_BCHW.shape[1] for map_BCHW in maps] == info.channels() and len(maps) == 3
    assert torch.equal(final, model.forward_features(image))
    last = model.formats[-1]  # tokens in a row, or maps with channels last
    others = model.forward_intermediates(image, output_fmt=last, intermediates_only=True)
    turned = (map_BCHW.flatten(2).mT if last == "NLC" else map_BCHW.permute(0, 2, 3, 1) for map_BCHW in maps)
    assert all(torch.equal(one, other) for one, other in zip(turned, others, strict=True))
    early = model.forward_intermediates(image, indices=[0], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], maps[0])
    (unknown,) = {"NLC", "NHWC"} - {last}
    with pytest.raises(ValueError, match=unknown):
        model.forward_intermediates(image, output_fmt=unknown)
    model.set_grad_checkpointing()
    assert torch.equal(model.forward_intermediates(image)[0], final)


@EVERY
@torch.no_grad()
def test_prune_intermediate_layers(name):
    model, image = small(name).eval(), image_for(name)
    maps = model.forward_intermediates(image, intermediates_only=True)
    assert model.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    pruned = model.forward_intermediates(image, indices=[0, 1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(pruned, maps[:2], strict=True))


@EVERY
def test_extraction_by_fx(name):
    """Bit for bit what the model computes, and every parameter gets a gradient."""
    model, image = small(name, num_classes=4).eval(), image_for(name)
    head = model.pretrained_cfg["classifier"]
    graph = create_feature_extractor(model, [head])
    assert torch.equal(graph(image)[head], model(image))
    graph.train()(image)[head].mean().backward()
    assert [key for key, p in graph.named_parameters() if p.grad is None] == []


@ONE_A_KIND
@torch.no_grad()
def test_symbolic_trace(name):
    """Of torch's operators alone, at another size and batch too; float64, sums in another order."""
    model = small(name).double().eval()
    graph = torch.fx.symbolic_trace(model)
    assert not [node for node in graph.graph.nodes if str(node.target).startswith("longvision.")]
    for image in (image_for(name), torch.cat([image_for(name, batch=3)] * 2, dim=3)):
        image = image.double()
        torch.testing.assert_close(graph(image), model(image), rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["arm_tiny_patch16_224", "localvim_tiny_patch16_224", "localvim_small_patch16_224"])
def test_compiled_and_exported(name):
    """Of whole blocks, what the model gives; the other families have such a test of their own."""
    model, image = small(name, depth=1).double().eval(), image_for(name).double()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for other in (compiled, torch.export.export(model, (image,)).module()):
        torch.testing.assert_close(other(image), model(image), rtol=1e-10, atol=1e-11)


@ONE_A_KIND
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(name, dtype):
    """Pure, and in mixed precision."""
    model, image = small(name).eval(), image_for(name)
    truth = model(image)
    with torch.autocast("cpu", dtype):
        mixed = model(image)
    for logits in (mixed, model.to(dtype)(image.to(dtype))):
        assert (logits.float() - truth).norm() < 0.05 * truth.norm()


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("vmamba")])
def test_stochastic_depth_rises_with_the_blocks(name):
    with torch.device("meta"):
        model = timm.create_model(name, depth=5, embed_dim=96, num_classes=0, drop_path_rate=0.4)
    rates = [getattr(block, "drop_path", getattr(block, "drop_path1", None)) for block in model._blocks()]
    expected = [0.0, 0.0, 0.1, 0.2, 0.3] if name.startswith("arm") else [0.0, 0.1, 0.2, 0.3, 0.4]
    assert [getattr(rate, "drop_prob", 0.0) for rate in rates] == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_what_is_sharded(name):
    """By --trainer.strategy fsdp."""
    from longvision.engine.strategy import BLOCKS

    with torch.device("meta"):
        blocks = small(name)._blocks()
    blocks = [block for stage in blocks for block in getattr(stage, "blocks", [stage])]
    assert all(isinstance(block, tuple(BLOCKS)) for block in blocks)


@EVERY
def test_what_raises(name):
    with pytest.raises(TypeError, match="no_such_argument"):
        small(name, no_such_argument=1)
    for pool in ("no such pool", "avgmax", *(() if name.startswith("navit") else ("map",))):
        with pytest.raises(UserError, match=pool):
            small(name, global_pool=pool)
        with pytest.raises(UserError, match=pool):
            small(name).reset_classifier(3, pool)
    if not small(name).takes_packed:
        with pytest.raises(UserError, match=name):
            small(name)(PackedImages.from_images([torch.zeros(3, 16, 16)], 4))


@EVERY
@torch.no_grad()
def test_weights_from_a_file(name, tmp_path):
    """For one channel, another number of classes and none, and with features_only."""
    source, path = small(name, num_classes=6), tmp_path / "weights.safetensors"
    save_weights(source, path)
    made = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path), "num_classes": 6}}
    same = small(name, **made, num_classes=6).state_dict()
    assert same.keys() == source.state_dict().keys()
    assert all(torch.equal(same[key], tensor) for key, tensor in source.state_dict().items())
    for classes in (5, 0):
        grey = small(name, **made, in_chans=1, num_classes=classes).eval()
        assert grey(image_for(name, channels=1)).shape[0] == 2 and grey.num_classes == classes
        assert torch.equal(grey._blocks()[0].state_dict().popitem()[1], source._blocks()[0].state_dict().popitem()[1])
    assert len(small(name, **made, features_only=True)(image_for(name))) == 3
    pooled = small(name, **made, num_classes=0, global_pool="avg")  # the head is another's, and with it what pools
    assert torch.equal(pooled._blocks()[0].state_dict().popitem()[1], source._blocks()[0].state_dict().popitem()[1])


@EVERY
@torch.no_grad()
def test_copies(name):
    model, image = small(name, in_chans=1).eval(), image_for(name, channels=1)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(image), model(image))
    with_some = name.startswith(("deepvit", "localvim_small"))  # statistics of batch norms, rotary positions
    buffers = {key for key, _ in model.named_buffers()} if with_some else set()
    assert set(model.state_dict()) == {key for key, _ in model.named_parameters()} | buffers


@EVERY
def test_layers_for_optimisers(name):
    """Each parameter once; a block learns faster than what stands before it."""
    model = small(name)
    assert model.no_weight_decay() <= {key for key, _ in model.named_parameters()}
    groups = create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5).param_groups
    scales = [group["lr_scale"] for group in groups for _ in group["params"]]
    assert len(scales) == len(list(model.parameters()))
    of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    stem, head = next(model.patch_embed.parameters()), model.get_classifier().weight
    blocks = [next(block.parameters()) for block in model._blocks()]
    rates = [of[id(p)] for p in (stem, *blocks, head)]
    assert rates == sorted(set(rates)) and rates[-1] == 1


@EVERY
@torch.no_grad()
def test_another_size(name):
    model = small(name).eval()
    side = image_for(name).shape[3]
    image = torch.nn.functional.pad(image_for(name), (0, side))
    logits = model(image)
    assert logits.shape == (2, model.num_classes)
    if hasattr(model, "set_input_size"):
        model.set_input_size(tuple(image.shape[2:]))
        assert torch.equal(model(image), logits)


def test_a_backbone_added_has_a_name_for_commands_too():
    assert create_backbone("tiny_transformer_patch4_16", 2, 1, (16, 24)).grid == (4, 6)
    assert create_backbone("tiny_maps_16", 2, 1, (16, 24)).num_classes == 2
