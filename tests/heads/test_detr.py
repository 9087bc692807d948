"""DETR: the set loss against transformers', what is trained and what is frozen, weights that stay as they were read."""

import socket
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.ops import box_convert

from longvision.heads.detr import Detr, create_detr, masked_batch
from longvision.heads.set_loss import match_queries, set_losses
from longvision.types import Target
from support.forked import Forked

pytest.importorskip("transformers")
pytest.importorskip("scipy")

VIM = "vim_nano_patch4_32"
DEIT = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def small(name: str = VIM, classes: int = 3, **options) -> Detr:
    options = {"channels": 3, "size": (64, 64), "queries": 5, "width": 32, "layers": 3, **options}
    return create_detr(name, classes, **options)


def target(*objects: tuple[int, list[float]], crowd: list[int] | None = None) -> Target:
    boxes = torch.tensor([box for _, box in objects], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([label for label, _ in objects], dtype=torch.int64)
    return Target(boxes, labels, torch.tensor(crowd or [0] * len(objects), dtype=torch.bool))


def scene() -> tuple[list[Tensor], list[Target]]:
    images = [torch.randn(3, 50, 70), torch.randn(3, 64, 48)]
    return images, [target((0, [5, 5, 20, 30]), (2, [10, 10, 60, 40])), target((1, [0, 0, 48, 64]))]


def predictions(batch: int = 2, layers: int = 3, queries: int = 6, classes: int = 4):
    """Logits and boxes as a decoder gives them; labels and boxes, as many as images have numbers: 0, 1, 2, ..."""
    logits = torch.randn(layers, batch, queries, classes + 1)
    boxes = torch.rand(layers, batch, queries, 4) * 0.4 + 0.3
    labels = [torch.randint(classes, (n,)) for n in range(batch)]
    return logits, boxes, labels, [torch.rand(n, 4) * 0.4 + 0.3 for n in range(batch)]


def with_another_norm(model: Detr) -> Detr:
    """What comes out of a new model's decoder layers is normalised already: its final norm would change nothing."""
    nn.init.uniform_(model.model.model.decoder.layernorm.weight)
    nn.init.uniform_(model.model.model.decoder.layernorm.bias)
    return model.eval()


def nonzero_gradients(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


# ---- the losses


def test_losses_of_every_layer_are_those_of_transformers():
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    logits, boxes, labels, wanted = predictions(batch=9)  # of 6 queries and up to 8 objects
    theirs = ImageLoss(HungarianMatcher(1, 5, 2), num_classes=4, eos_coef=0.1, losses=["labels", "boxes"])
    targets = [{"class_labels": label, "boxes": box} for label, box in zip(labels, wanted, strict=True)]
    ours = set_losses(logits, boxes, labels, wanted)
    for n, suffix in enumerate(("_0", "_1", "")):
        expected = theirs({"logits": logits[n], "pred_boxes": boxes[n]}, targets)
        torch.testing.assert_close(ours[f"loss_class{suffix}"], expected["loss_ce"])
        torch.testing.assert_close(ours[f"loss_box{suffix}"], 5 * expected["loss_bbox"])
        torch.testing.assert_close(ours[f"loss_giou{suffix}"], 2 * expected["loss_giou"])
    assert len(ours) == 9


def test_losses_by_hand():
    """One query on the object, one without; chances of a half."""
    logits = torch.zeros(1, 1, 2, 2)
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]]]])
    losses = set_losses(logits, boxes, [torch.tensor([0])], [torch.tensor([[0.5, 0.5, 0.4, 0.2]])])
    # Both are half of the object or twice: |0.2| away, IoU 1/2. The smaller lies within: GIoU 1/2 as well.
    torch.testing.assert_close(losses["loss_class"], torch.tensor(2.0).log())
    torch.testing.assert_close(losses["loss_box"], torch.tensor(5 * 0.2))
    torch.testing.assert_close(losses["loss_giou"], torch.tensor(2 * 0.5))


def test_objects_are_matched_to_the_queries_that_are_on_them():
    logits, boxes, labels, wanted = predictions(batch=3, layers=2, queries=4)
    boxes[:] = 0.9
    places = [(1, 3, 0), (2, 0, 1), (2, 1, 2)]  # image, query, object counted through the batch
    for image, query, number in places:
        boxes[:, image, query] = torch.cat(wanted)[number]
    for layer in match_queries(logits * 0, boxes, labels, wanted):
        assert sorted(zip(*(column.tolist() for column in layer), strict=True)) == sorted(places)


def test_more_objects_than_queries():
    logits, boxes, _, _ = predictions(batch=1, queries=2)
    labels, wanted = [torch.zeros(5, dtype=torch.int64)], [torch.rand(5, 4) * 0.4 + 0.3]
    assert [len(query) for _, query, _ in match_queries(logits, boxes, labels, wanted)] == [2, 2, 2]
    assert all(loss.isfinite() for loss in set_losses(logits, boxes, labels, wanted).values())


def test_a_diverged_model_shows_in_its_loss():
    logits, boxes, labels, wanted = predictions()
    losses = set_losses(logits * float("nan"), boxes * float("nan"), labels, wanted)
    assert sum(losses.values()).isnan()


RANK = """
import sys
import torch
import torch.distributed as dist
from longvision.heads.set_loss import set_losses
from longvision.types import Target

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
logits, boxes, labels, wanted = torch.load(f"{folder}/scene.pt")
mine = slice(0, 3) if rank == 0 else slice(3, 6)
logits, boxes = logits[:, mine].requires_grad_(), boxes[:, mine].requires_grad_()
losses = set_losses(logits, boxes, labels[mine], wanted[mine])
sum(losses.values()).backward()
with torch.no_grad():
    if rank == 0:  # nobody answers
        alone = set_losses(logits, boxes, labels[mine], wanted[mine])
torch.save(({k: v.detach() for k, v in losses.items()}, logits.grad, boxes.grad), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_ranks_train_as_one_process_with_all_images(tmp_path: Path):
    logits, boxes, labels, wanted = predictions(batch=6)  # 3 objects on one rank, 12 on the other
    torch.save((logits, boxes, labels, wanted), tmp_path / "scene.pt")
    ranks = [Forked(tmp_path, RANK, rank, tmp_path) for rank in range(2)]
    assert [rank.wait().returncode for rank in ranks] == [0, 0]

    logits.requires_grad_(), boxes.requires_grad_()
    losses = set_losses(logits, boxes, labels, wanted)
    sum(losses.values()).backward()
    (first, *first_grads), (second, *second_grads) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, loss in losses.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, loss.detach())
    for grad, a, b in zip((logits.grad, boxes.grad), first_grads, second_grads, strict=True):
        torch.testing.assert_close(torch.cat([a, b], 1) / 2, grad)  # as DistributedDataParallel averages


# ---- the model


def test_the_last_layer_is_that_of_transformers():
    model, (images, _) = with_another_norm(small()), scene()
    with torch.no_grad():
        logits, boxes = model.decode(images)
        expected = model.model(*masked_batch(images))
    torch.testing.assert_close(logits[-1], expected.logits)
    torch.testing.assert_close(boxes[-1], expected.pred_boxes)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_decoder_cut_short_predicts_what_its_layer_did(layers: int):
    """So the final norm is for the heads alone: no layer works on what it made of the one before."""
    model, (images, _) = with_another_norm(small()), scene()
    with torch.no_grad():
        logits, boxes = model.decode(images)
        decoder = model.model.model.decoder
        decoder.layers = decoder.layers[:layers]
        cut_logits, cut_boxes = model.decode(images)
    assert len(logits) == 3 and len(cut_logits) == layers
    torch.testing.assert_close(cut_logits, logits[:layers])
    torch.testing.assert_close(cut_boxes, boxes[:layers])


def test_losses_of_the_layers_before_the_last_are_in_the_loss():
    model, (images, targets) = small(), scene()
    losses = model(images, targets)
    kinds = ("loss_class", "loss_box", "loss_giou")
    assert set(losses) == {f"{kind}{suffix}" for kind in kinds for suffix in ("", "_0", "_1")}
    assert all(loss > 0 for loss in losses.values())
    losses["loss_class_0"].backward()
    reached = nonzero_gradients(model.model.model.decoder)
    assert any(name.startswith("layers.0.") for name in reached)
    assert not any(name.startswith(("layers.1.", "layers.2.")) for name in reached)


@pytest.mark.parametrize(
    ("name", "args"), [(VIM, None), ("deit_tiny_patch16_224", DEIT), ("resnet10t", {"zero_init_last": False})]
)
def test_every_trained_parameter_gets_a_gradient(name: str, args: dict | None):
    model, (images, targets) = small(name, args=args), scene()
    sum(model(images, targets).values()).backward()
    assert {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None} == set()
    assert {n for n, p in model.backbone.named_parameters() if p.requires_grad} == nonzero_gradients(model.backbone)


def test_images_without_objects_teach_that_there_is_nothing():
    model, (images, _) = small(), scene()
    losses = model(images, [target(), target()])
    assert losses["loss_box"] == 0 and losses["loss_giou"] == 0 and losses["loss_class"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_boxes_of_crowds_are_left_out():
    model, (images, targets) = small(dropout=0.0), scene()
    crowd = target((0, [5, 5, 20, 30]), (2, [10, 10, 60, 40]), (1, [0, 0, 9, 9]), crowd=[0, 0, 1])
    for left, right in zip(model(images, targets).values(), model(images, [crowd, targets[1]]).values(), strict=True):
        assert left == right


def test_boxes_are_fractions_of_the_image_and_not_of_the_padded_batch():
    """A query that says "the left half" means the image's, alone or beside a larger one."""
    model = small(queries=1, dropout=0.0)
    last = model.model.bbox_predictor.layers[-1]
    nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([0.25, 0.5, 0.5, 1 - 1e-6]).logit()
    images, half = [torch.randn(3, 32, 40), torch.randn(3, 64, 96)], target((0, [0, 0, 20, 32]))
    losses = model(images, [half, target()])
    torch.testing.assert_close(losses["loss_box"], torch.tensor(0.0), atol=1e-4, rtol=0)
    found = model.eval().detect(images, [(320, 400), (64, 96)])
    torch.testing.assert_close(found[0].boxes, torch.tensor([[0.0, 0.0, 200.0, 320.0]]), atol=1e-2, rtol=0)
    torch.testing.assert_close(found[1].boxes, torch.tensor([[0.0, 0.0, 48.0, 64.0]]), atol=1e-2, rtol=0)


def test_a_batch_is_padded_below_and_right_and_the_padding_is_masked():
    images = [torch.randn(3, 50, 128), torch.randn(3, 64, 48)]
    pixels, mask = masked_batch(images)
    assert pixels.shape == (2, 3, 64, 128) and mask.sum((1, 2)).tolist() == [50 * 128, 64 * 48]
    assert (pixels[0, :, :50] == images[0]).all() and (pixels[1, :, :, :48] == images[1]).all()
    assert not pixels[0, :, 50:].any() and not pixels[1, :, :, 48:].any()

    model = small("resnet10t", args={"zero_init_last": False}).eval()
    backbone = model.model.model.backbone
    with torch.no_grad():
        [(map_BDHW, mask_BHW)] = backbone(pixels, mask)
        assert mask_BHW[1].tolist() == [[True, True, False, False]] * 2
        before = model.decode(images)
        backbone.forward = lambda *_: [(map_BDHW.where(mask_BHW[:, None], 1e3), mask_BHW)]
        for seen, expected in zip(model.decode(images), before, strict=True):
            torch.testing.assert_close(seen, expected)


def test_detections_are_boxes_scores_and_labels_of_each_image():
    model, (images, _) = small(classes=2).eval(), scene()
    model.model.class_labels_classifier.bias.data[-1] = 5  # most likely there is nothing
    model.model.bbox_predictor.layers[-1].bias.data[:] = torch.tensor([-1, 1, 3, 3])  # large and not centred
    sizes = [(500, 700), (64, 48)]
    with torch.no_grad():
        logits, boxes = model.decode(images)
    found = model.detect(images, sizes)
    for n, (one, (height, width)) in enumerate(zip(found, sizes, strict=True)):
        assert one.boxes.shape == (5, 4) and one.boxes.dtype == torch.float32
        assert one.labels.dtype == torch.int64
        assert not one.boxes.requires_grad and not one.scores.requires_grad
        assert (one.scores.diff() <= 0).all()
        chances = logits[-1, n].softmax(-1)[:, :2]  # without that for nothing
        torch.testing.assert_close(one.scores, chances.amax(1).sort(descending=True).values)
        best = chances.amax(1).argmax()
        assert one.labels[0] == chances[best].argmax()
        corners = box_convert(boxes[-1, n, best], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        within = corners.clamp(torch.zeros(4), torch.tensor([width, height, width, height]))
        assert (within != corners).any()
        torch.testing.assert_close(one.boxes[0], within)


@pytest.mark.parametrize("name", [VIM, "resnet10t"])
def test_matching_and_losses_are_in_float32_under_autocast(name: str):
    model, (images, targets) = small(name), scene()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images, targets)
        sum(losses.values()).backward()
        logits, boxes = model.decode(images)
        found = model.eval().detect(images, [(50, 70), (64, 48)])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert logits.dtype == boxes.dtype == found[0].boxes.dtype == found[0].scores.dtype == torch.float32
    assert (logits != logits.bfloat16()).any()  # the heads' products have not rounded them
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(("height", "width"), [(33, 95), (16, 16), (7, 5)])
def test_any_image_size(height: int, width: int):
    for name in (VIM, "resnet10t"):
        model = small(name)
        losses = model([torch.randn(3, height, width)], [target((0, [0, 0, width, height]))])
        assert all(loss.isfinite() for loss in losses.values()), name


def test_grey_images():
    model = small("resnet10t", channels=1)
    assert model([torch.randn(1, 40, 40)], [target((0, [0, 0, 9, 9]))])["loss_class"].isfinite()


# ---- the backbone


def test_the_map_has_stride_16_from_one_stride_and_32_from_stages():
    images = torch.randn(1, 3, 64, 128)
    mask = torch.ones(1, 64, 128, dtype=torch.bool)
    for name, args, stride in ((VIM, None, 16), ("deit_tiny_patch16_224", DEIT, 16), ("resnet10t", None, 32)):
        [(map_BDHW, _)] = small(name, args=args).model.model.backbone(images, mask)
        assert map_BDHW.shape[-2:] == (64 // stride, 128 // stride), name


@pytest.mark.parametrize(("name", "args"), [("resnet10t", {}), (VIM, {}), ("deit_tiny_patch16_224", DEIT)])
def test_the_backbones_weights_are_those_of_the_file(tmp_path: Path, name: str, args: dict):
    source = timm.create_model(name, num_classes=7, **args)
    weights = {key: torch.randn_like(value) if value.is_floating_point() else value
               for key, value in source.state_dict().items()}  # fmt: skip
    for key in weights:
        if key.endswith(("running_var", "A_b_log", "A_log")):
            weights[key] = weights[key].abs() + 0.1
    file = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in weights.items()}, file)

    model = small(name, args=args, pretrained=str(file))
    held = {key.removeprefix("model.base."): value for key, value in model.backbone.state_dict().items()}
    shared = {key for key in held if key in weights and held[key].shape == weights[key].shape}
    left_out = {key for key in weights if key not in shared and "num_batches_tracked" not in key}
    assert all(key.startswith(("head", "fc", "pos_embed", "cls_token")) for key in left_out), left_out
    assert len(shared) > 20
    for key in shared:
        torch.testing.assert_close(held[key], weights[key], rtol=0, atol=0, msg=key)


def test_of_a_resnet_the_stem_and_first_stage_are_frozen_and_the_rest_is_trained():
    model = small("resnet18")
    trained = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    frozen = {name for name, p in model.backbone.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"layer2", "layer3", "layer4"}
    assert {name.split(".")[0] for name in frozen} == {"conv1", "layer1"}  # and bn1, which has no parameters any more
    assert len(trained) == 3 * 5 and len(frozen) == 1 + 4  # convolutions
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("model.model.backbone."))


def test_batch_norms_neither_learn_nor_measure():
    model, (images, targets) = small("resnet10t").train(), scene()
    assert not [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = {key: value.clone() for key, value in model.backbone.state_dict().items() if "running" in key}
    assert norms and not [name for name, _ in model.backbone.named_parameters() if ".bn" in name]
    model(images, targets)
    after = model.backbone.state_dict()
    assert all((after[key] == value).all() for key, value in norms.items())


@pytest.mark.parametrize(("name", "args"), [(VIM, None), ("deit_tiny_patch16_224", DEIT)])
def test_of_a_backbone_of_one_stride_nothing_is_frozen(name: str, args: dict | None):
    assert all(p.requires_grad for p in small(name, args=args).parameters())


def test_the_backbone_is_one_part_and_not_two():
    model = small()
    assert model.backbone is model.model.model.backbone.model
    inside = {name for name, _ in model.named_parameters() if name.startswith("model.model.backbone.")}
    assert len(inside) == len(list(model.backbone.parameters())) > 0
    assert len(model.state_dict()) == len({value.data_ptr() for value in model.state_dict().values()})


# ---- how it begins


def test_it_begins_as_the_papers_code_does():
    model = small(width=64, queries=50).model
    # N(0, 1): the queries are far apart
    assert 0.9 < model.model.query_position_embeddings.weight.std() < 1.1
    attention, mlp = model.model.decoder.layers[0].encoder_attn, model.model.encoder.layers[0].mlp
    # Xavier's bound; queries, keys and values are one matrix there, of 192 rows
    for weight, sides in ((attention.q_proj, 64 + 192), (attention.o_proj, 64 + 64), (mlp.fc1, 64 + 512)):
        assert 0.98 < weight.weight.abs().max() / (6 / sides) ** 0.5 <= 1.0001
    assert not attention.k_proj.bias.any() and mlp.fc1.bias.any()


@pytest.mark.parametrize(("options", "dropout"), [({}, 0.1), ({"dropout": 0.0}, 0.0)])
def test_dropout_is_where_the_paper_has_it(options: dict, dropout: float):
    model = small(**options).model.model
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        assert layer.dropout == layer.mlp.dropout == layer.mlp.activation_dropout == dropout
        assert layer.self_attn.attention_dropout == dropout
    assert all(layer.encoder_attn.attention_dropout == dropout for layer in model.decoder.layers)
    assert model.encoder.dropout == 0


def test_with_a_resnet_50_it_has_as_many_parameters_as_the_papers_code():
    """Which counts those that are trained as it starts on COCO, whose classes it numbers to 91."""
    with torch.device("meta"):
        model = create_detr("resnet50", 91, 3, (64, 64))
    assert sum(p.numel() for p in model.parameters()) == 41_524_768
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 41_302_368


def test_nothing_is_asked_of_the_network(monkeypatch: pytest.MonkeyPatch):
    asked: list = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: asked.append(args) or [])
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    for name in (VIM, "resnet10t"):
        small(name)
    assert asked == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 36}, "width 36 does not divide into 8 heads"),
        ({"queries": 0}, "queries 0: .*at least 1"),
        ({"classes": 0}, "classes 0: .*at least 1"),
        ({"layers": 0}, "layers 0: .*at least 1"),
        ({"dropout": 1.0}, "dropout 1.0: expected from 0 to below 1"),
        ({"name": "vim_tiny_patch16_242"}, "did you mean vim_tiny_patch16_224"),
    ],
)
def test_errors_say_what_to_do(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        small(**options)
