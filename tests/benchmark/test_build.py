"""Models in their forms, bare and under heads, and the call that is measured."""

import pytest
import torch

from longvision.benchmark.build import Step, checkpoint_blocks, create, describe_attention

HEADS = ["fpn", "cascade", "detr"]


def outputs_of(step):
    """What the model gives in a call of `step`."""
    seen = []
    step.model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    step()
    return seen[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["test_vit", "vim_nano_patch4_32", "test_resnet", "deit_tiny_distilled_patch16_224"])
def test_training_makes_every_gradient(case, name, dtype):
    step = Step(case(model=name, mode="train", dtype=dtype))
    step()
    assert step.model.training
    assert all(p.grad is not None and p.dtype == torch.float32 for p in step.model.parameters())
    step.clear()
    assert all(p.grad is None for p in step.model.parameters())


def test_inference_keeps_no_graph(case):
    step = Step(case())
    assert outputs_of(step).is_inference() and not step.model.training


def test_bfloat16_is_taken_by_autocast(case):
    assert outputs_of(Step(case(dtype="bfloat16"))).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["test_vit", "vim_nano_patch4_32", "test_resnet"])
def test_float64_is_of_the_whole_model(case, name):
    step = Step(case(model=name, mode="train", dtype="float64"))
    assert outputs_of(step).dtype == torch.float64
    assert all(p.dtype == p.grad.dtype == torch.float64 for p in step.model.parameters())


def test_forms_of_attention(case, monkeypatch):
    calls = []
    true_form = torch.nn.functional.scaled_dot_product_attention

    def spy(*arguments, **options):
        calls.append(1)
        return true_form(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    fused, plain = Step(case()), Step(case(form="materialised"))
    fused()
    assert calls
    calls.clear()
    plain()
    assert not calls
    assert (fused.attention, plain.attention) == ("sdpa", "materialised")
    plain.model.load_state_dict(fused.model.state_dict())
    with torch.no_grad():
        assert torch.allclose(fused.model(fused.images_BCHW), plain.model(fused.images_BCHW), atol=1e-5)


def test_the_scan_s_backend_is_named(case, monkeypatch):
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "chunked")
    assert Step(case(model="vim_nano_patch4_32")).attention == "scan: chunked"
    resnet = case(model="test_resnet")
    assert describe_attention(Step(resnet).model, resnet) == ""


def saved_bytes(step, call):
    """Of the tensors that are saved for the backward pass, weights aside."""
    weights, saved = {p.data_ptr() for p in step.model.parameters()}, []

    def save(tensor):
        if tensor.data_ptr() not in weights:
            saved.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        call()
    return sum(saved)


@pytest.mark.parametrize("name", ["vim_nano_patch4_32", "deit_tiny_patch16_224"])
def test_checkpointing_saves_less(case, name):
    def saved(checkpoint):
        step = Step(case(model=name, mode="train", checkpoint=checkpoint))
        return saved_bytes(step, lambda: step.model(*step.inputs))

    assert saved(True) < 0.7 * saved(False)


def test_models_that_cannot_checkpoint_say_so():
    can = {name: checkpoint_blocks(create(name, 32)) for name in ("test_vit", "vim_nano_patch4_32", "sequencer2d_s")}
    assert can == {"test_vit": True, "vim_nano_patch4_32": True, "sequencer2d_s": False}


# Under a head


@pytest.fixture
def with_head(case):
    """with_head(head, mode="train") -> a Step, where the head's library is there."""

    def make(head, **changes):
        if head == "fpn":
            pytest.importorskip("segmentation_models_pytorch")
        if head == "detr":
            pytest.importorskip("transformers")
        return Step(case(**{"model": "vim_nano_patch4_32", "batch": 1, "head": head, **changes}))

    return make


@pytest.mark.parametrize(
    "head, name, dtype",
    [
        ("fpn", "vim_nano_patch4_32", "float32"),
        ("fpn", "resnet10t", "bfloat16"),
        ("cascade", "vim_nano_patch4_32", "float32"),
        ("detr", "vim_nano_patch4_32", "bfloat16"),
    ],
)
def test_training_under_a_head_makes_every_gradient(with_head, head, name, dtype):
    step = with_head(head, model=name, mode="train", dtype=dtype, size=64)
    step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.model.parameters())
    assert next(step.model.backbone.parameters()).grad.any()


def test_a_segmenter_s_output_is_of_every_pixel(with_head):
    output = outputs_of(with_head("fpn", batch=2, size=52))
    assert output.shape == (2, 150, 52, 52) and output.is_inference()


@pytest.mark.slow
def test_a_detector_finds_as_many_objects_with_masks_as_it_may(with_head):
    """With the usual threshold random weights find none, and masks would not be measured."""
    (found,) = outputs_of(with_head("cascade", size=64))
    assert found.masks.shape == (100, 64, 64)


def test_a_detector_learns_seven_boxes_an_image_that_their_masks_fill(with_head):
    one, two = (with_head("cascade", mode="train", batch=2, size=96) for _ in range(2))
    images, targets = one.inputs
    assert len(images) == len(targets) == 2
    for target, same in zip(targets, two.inputs[1], strict=True):
        boxes = target.boxes
        assert boxes.shape == (7, 4) and torch.equal(boxes, same.boxes)
        assert (boxes >= 0).all() and (boxes <= 96).all()
        sides = boxes[:, 2:] - boxes[:, :2]
        assert (sides >= 96 / 8 - 1e-4).all() and (sides <= 96 / 2 + 1e-4).all()
        for (x1, y1, x2, y2), mask in zip(boxes.round().int().tolist(), target.masks, strict=True):
            assert mask[y1:y2, x1:x2].all() and mask.sum() == (y2 - y1) * (x2 - x1)


@pytest.mark.parametrize("head", HEADS)
def test_forms_reach_the_backbone_under_a_head(with_head, head):
    assert with_head(head, model="deit_tiny_patch16_224", form="materialised").attention == "materialised"
    step = with_head(head, mode="train", checkpoint=True)
    assert step.attention.startswith("scan: ")
    switches = [module.grad_checkpointing for module in step.model.modules() if hasattr(module, "grad_checkpointing")]
    assert switches == [True]


@pytest.mark.slow
def test_checkpointing_saves_less_of_a_backbone_under_a_head(with_head):
    def saved(checkpoint):
        step = with_head("cascade", model="deit_tiny_patch16_224", mode="train", checkpoint=checkpoint)
        return saved_bytes(step, lambda: step.model.backbone.body(step.images_BCHW))

    assert saved(True) < 0.7 * saved(False)
