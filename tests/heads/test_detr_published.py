"""DETR as published: its size, its files, and the same answers and losses as transformers' own."""

import logging

import pytest
import torch
from torch import nn

from longvision.errors import UserError
from longvision.heads.detr import create_detr, masked_batch
from longvision.types import Target

transformers = pytest.importorskip("transformers")
pytest.importorskip("scipy")

NAME = "resnet10t"
SIZES = {"queries": 5, "width": 32, "layers": 2}


def ours(classes=3, pretrained=False, **options):
    return create_detr(NAME, classes, 3, (64, 64), pretrained, **{**SIZES, **options}).eval()


@pytest.fixture(scope="module")
def theirs():
    """transformers' whole model, on timm's backbone as its published weights are, of random numbers."""
    torch.manual_seed(0)
    sides = {"d_model": 32, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "encoder_layers": 2, "decoder_layers": 2}
    config = transformers.DetrConfig(backbone=NAME, use_timm_backbone=True, num_labels=3, num_queries=5, **sides)
    model = transformers.DetrForObjectDetection(config).eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            (nn.init.uniform_ if "running_var" in name else nn.init.normal_)(tensor)
            tensor.mul_(0.2).add_(0.5 if "running_var" in name else 0)
    return model


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory):
    """In the layout of facebook/detr-resnet-50, which transformers turns into today's names when it reads it."""
    folder = tmp_path_factory.mktemp("published")
    theirs.save_pretrained(folder)
    return str(folder / "model.safetensors")


def scene():
    images = [torch.randn(3, 50, 70), torch.randn(3, 64, 48)]
    boxes = [[[5, 5, 20, 30], [10, 10, 60, 40]], [[0, 0, 48, 64]]]
    labels = [[0, 2], [1]]
    return images, [
        Target(torch.tensor(box, dtype=torch.float32), torch.tensor(label), torch.zeros(len(label), dtype=torch.bool))
        for box, label in zip(boxes, labels, strict=True)
    ]


def test_its_file_has_the_published_names(file):
    from longvision.files import opened_weights

    with opened_weights(file, "pt") as (opened, _):
        names = set(opened.keys())
    assert {
        "model.backbone.conv_encoder.model.layer1.0.conv1.weight", "model.encoder.layers.1.self_attn.out_proj.bias",
        "model.decoder.layers.0.fc1.weight", "model.query_position_embeddings.weight", "class_labels_classifier.bias",
    } <= names  # fmt: skip


def test_answers_and_losses_are_those_of_transformers(theirs, file):
    images, targets = scene()
    pixels, mask = masked_batch(images)
    wanted = [
        {"class_labels": target.labels, "boxes": boxes}
        for target, boxes in zip(targets, [[[12.5, 17.5, 15, 25], [35, 25, 50, 30]], [[24, 32, 48, 64]]], strict=True)
    ]
    for one, image in zip(wanted, images, strict=True):
        height, width = image.shape[1:]
        one["boxes"] = torch.tensor(one["boxes"]) / torch.tensor([width, height, width, height])
    model = ours(pretrained=file)
    with torch.no_grad():
        expected = theirs(pixels, mask, labels=wanted)
        logits, boxes = model.decode(images)
        losses = model.losses(images, targets)
    torch.testing.assert_close(logits[-1], expected.logits)
    torch.testing.assert_close(boxes[-1], expected.pred_boxes)
    for name, theirs_name, weight in (("class", "ce", 1), ("box", "bbox", 5), ("giou", "giou", 2)):
        torch.testing.assert_close(losses[f"loss_{name}"], weight * expected.loss_dict[f"loss_{theirs_name}"])
    torch.testing.assert_close(sum(value for name, value in losses.items() if name[-1].isalpha()), expected.loss)


def as_authors(weights):
    """transformers' names of 5.x -> those of facebookresearch/detr, whose attention is torch's."""
    attention = {"self_attn": "self_attn", "encoder_attn": "multihead_attn"}
    norms = {
        "encoder": {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2"},
        "decoder": {"self_attn_layer_norm": "norm1", "encoder_attn_layer_norm": "norm2", "final_layer_norm": "norm3"},
    }
    stems = {
        "model.backbone.model": "backbone.0.body", "model.input_projection": "input_proj",
        "model.query_position_embeddings": "query_embed", "class_labels_classifier": "class_embed",
        "bbox_predictor": "bbox_embed", "model.decoder.layernorm": "transformer.decoder.norm",
    }  # fmt: skip
    found = {}
    for name, weight in weights.items():
        stem = next((stem for stem in stems if name.startswith(f"{stem}.")), None)
        if stem:
            found[stems[stem] + name.removeprefix(stem)] = weight
            continue
        _, part, _, layer, *inside, kind = name.split(".")
        at = f"transformer.{part}.layers.{layer}"
        if inside[0] == "mlp":
            found[f"{at}.linear{inside[1][-1]}.{kind}"] = weight
        elif inside[0] in attention and inside[1] == "o_proj":
            found[f"{at}.{attention[inside[0]]}.out_proj.{kind}"] = weight
        elif inside[0] in attention:
            if inside[1] == "q_proj":
                own = name.replace("q_proj", "{}_proj")
                found[f"{at}.{attention[inside[0]]}.in_proj_{kind}"] = torch.cat(
                    [weights[own.format(x)] for x in "qkv"]
                )
        else:
            found[f"{at}.{norms[part][inside[0]]}.{kind}"] = weight
    return found


def test_the_authors_file_gives_the_same(theirs, file, tmp_path):
    weights = as_authors(theirs.state_dict())
    assert {
        "transformer.encoder.layers.1.self_attn.in_proj_weight",
        "transformer.decoder.layers.0.multihead_attn.in_proj_bias",
        "transformer.decoder.layers.1.norm3.weight", "transformer.encoder.layers.0.linear2.bias",
        "transformer.decoder.norm.weight", "bbox_embed.layers.2.bias", "backbone.0.body.layer4.0.conv2.weight",
    } <= set(weights)  # fmt: skip
    torch.save({"model": weights, "args": None}, tmp_path / "detr-r50.pth")
    left, right = ours(pretrained=str(tmp_path / "detr-r50.pth")).state_dict(), ours(pretrained=file).state_dict()
    assert left.keys() == right.keys()
    for name, weight in left.items():
        assert torch.equal(weight, right[name]), name


def test_another_number_of_classes_begins_with_a_new_head(file, caplog):
    with caplog.at_level(logging.INFO, "longvision"):
        model = ours(classes=7, pretrained=file)
    assert "for 3 classes, the model 7" in caplog.text
    assert model.model.class_labels_classifier.out_features == 8
    kept = ours(pretrained=file).model.model.query_position_embeddings.weight
    assert torch.equal(model.model.model.query_position_embeddings.weight, kept)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"queries": 4}, r"query_position_embeddings.*\(5, 32\).*\(4, 32\)"), ({"layers": 3}, "layers.2")],
)
def test_a_file_of_another_detr_is_told(file, options, words):
    with pytest.raises(UserError, match=words):
        ours(pretrained=file, **options)


def test_a_file_that_segments_too_is_told(theirs, tmp_path):
    weights = {f"detr.{name}": weight for name, weight in as_authors(theirs.state_dict()).items()}
    torch.save({"model": {**weights, "mask_head.lay1.weight": torch.zeros(1)}}, tmp_path / "panoptic.pth")
    with pytest.raises(UserError, match=r"mask_head\.lay1\.weight is unknown"):
        ours(pretrained=str(tmp_path / "panoptic.pth"))
