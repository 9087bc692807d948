"""Similarity of attention maps, against the paper's equation written out."""

import itertools

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.layers import Attention

from longvision.data.transforms.input_spec import InputSpec
from longvision.explain.attention import attention_layers, watched_attention
from longvision.explain.similarity import SimilarityMeter, _sentence, explain_similarity
from longvision.explain.subject import named_model
from longvision.inference.description import Description
from longvision.inference.predictor import Predictor
from longvision.models.memory import add_memory
from support.trained import write_model


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def maps(layers=3, batch=2, heads=2, tokens=4):
    return [torch.randn(batch, heads, tokens, tokens, dtype=torch.float64).softmax(-1) for _ in range(layers)]


def test_the_paper_s_equation():
    """Mean over images, heads and tokens t of cos(A^p[h, :, t], A^q[h, :, t]); float32 sums."""
    found = [maps(), maps()]  # two forward passes
    meter = SimilarityMeter(3, threshold=0.8)
    for own in found:
        for number, map_BHMM in enumerate(own):
            meter.add(number, map_BHMM)
    result = meter.result()
    every = list(itertools.product(range(2), range(2), range(4)))
    for p, q in itertools.product(range(3), range(3)):
        each = [cosine(own[p][b, h, :, t], own[q][b, h, :, t]) for own in found for b, h, t in every]
        assert result.layers_LL[p, q] == pytest.approx(np.mean(each), abs=1e-6)
    for layer in (1, 2):
        each = [cosine(own[layer - 1][b, h, :, t], own[layer][b, h, :, t]) for own in found for b, h, t in every]
        assert result.similar_L[layer] == pytest.approx(np.mean(np.array(each) >= 0.8))
    assert 0 < result.similar_L[1] < 1 and np.isnan(result.similar_L[0])
    for layer in range(3):
        each = [cosine(own[layer][b, 0, :, t], own[layer][b, 1, :, t]) for own in found for b, _, t in every]
        assert result.heads_L[layer] == pytest.approx(np.mean(each), abs=1e-6)
    assert result.adjacent() == pytest.approx([result.layers_LL[0, 1], result.layers_LL[1, 2]])
    low, high = sorted(result.adjacent())
    assert [result.similar_layers(t) for t in (low, high, 1.0)] == [1.0, 0.5, 0.0]


def test_with_little_memory_adjacent_layers_alone_are_compared():
    whole, small = SimilarityMeter(4), SimilarityMeter(4, memory=0)
    for number, map_BHMM in enumerate(maps(4)):
        whole.add(number, map_BHMM)
        small.add(number, map_BHMM)
        assert len(small._held) <= 2
    assert np.array_equal(whole.result().adjacent(), small.result().adjacent())
    assert np.isnan(small.result().layers_LL[0, 2]) and np.isfinite(whole.result().layers_LL).all()


def test_layers_of_other_shapes_and_of_one_head_are_not_compared():
    meter = SimilarityMeter(2)
    meter.add(0, torch.rand(1, 1, 4, 4))
    meter.add(1, torch.rand(1, 2, 4, 4))
    result = meter.result()
    assert np.isnan(result.layers_LL[0, 1]) and np.isnan(result.heads_L[0]) and np.isfinite(result.heads_L[1])
    assert np.isnan(result.similar_layers(0.5))
    assert "no two adjacent layers" in _sentence(result, 1, 0.5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_nano_patch4_32"])
@torch.no_grad()
def test_maps_are_those_of_the_model(name):
    """And the model is as it was, afterwards."""
    model = timm.create_model(name, img_size=32, depth=2, embed_dim=16, num_heads=2).eval()
    image, taken = torch.randn(1, 3, 32, 32), {}
    truth, inputs = model(image), {}
    for number, layer in enumerate(m for m in model.modules() if isinstance(m, Attention)):
        layer.register_forward_pre_hook(lambda _, x, number=number: inputs.update({number: x[0]}))
    with watched_attention(model, lambda number, map_BHMM: taken.update({number: map_BHMM})):
        torch.testing.assert_close(model(image), truth)
        assert not any(layer.fused_attn for layer in attention_layers(model).values())
    for number, layer in enumerate(attention_layers(model).values()):
        q, k, _ = layer.qkv(inputs[number]).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        torch.testing.assert_close(taken[number], (q @ k.mT / 8**0.5).softmax(-1))
        assert layer.fused_attn and not layer.attn_drop._forward_hooks
    taken.clear()
    assert torch.equal(model(image), truth) and not taken


SMALL = {"img_size": 32, "embed_dim": 16, "depth": 3}
NAMES = {"timm": ("vit_tiny_patch16_224", {"num_heads": 2}), "ours": ("vit_nano_patch4_32", {"num_heads": 2})}
NAMES["vim"] = "vim_nano_patch4_32", {}
EVERY = pytest.mark.parametrize("kind", NAMES)


def create(kind):
    name, own = NAMES[kind]
    return timm.create_model(name, num_classes=3, **SMALL, **own).eval()


def explained(model, image):
    """The finding's sentence, and the numbers of each layer."""
    about = Description("a model", ["a", "b", "c"], InputSpec((32, 32)))
    predictor = Predictor(model, description=about)
    batch = predictor.batch
    (found,) = explain_similarity(predictor, [image])
    assert predictor.batch == batch and predictor.model is model
    path = image.with_suffix(".csv")
    found.files["similarity.csv"](path)
    return found.sentence, path.read_text()


@pytest.fixture
def image(tmp_path):
    Image.effect_noise((32, 32), 90).convert("RGB").save(tmp_path / "image.png")
    return tmp_path / "image.png"


@EVERY
def test_of_a_model_with_tasks_the_base_is_compared(kind, image):
    """Its maps are those of the base alone, whatever the tasks read beside it."""
    model = create(kind)
    sentence, truth = explained(model, image)
    model.reset_classifier(0)  # as a run has it
    base_sentence, found = explained(add_memory(model, 3, mask=True), image)
    assert found == truth and len(found.splitlines()) == 4
    assert sentence in base_sentence and "base" in base_sentence


@pytest.mark.parametrize("task, said", [("segmentation", "of the backbone"), ("classification", "over 1 image")])
def test_under_a_head_the_backbone_is_said_to_be_compared(task, said, image, tmp_path):
    if task == "segmentation":
        pytest.importorskip("segmentation_models_pytorch")
    write_model(task, tmp_path / "model.safetensors")
    (finding,) = explain_similarity(Predictor(tmp_path / "model.safetensors", "cpu"), [image])
    assert finding.sentence.startswith(said)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["timm", "ours"])
def test_memory_is_no_part_of_the_image(kind):
    """Rows and columns of memory stand behind the image's tokens."""
    model, taken, whole = add_memory(create(kind), 3, memory=2), {}, {}
    for number, layer in enumerate(attention_layers(model).values()):
        layer.attn_drop.register_forward_hook(lambda _, __, map_, number=number: whole.update({number: map_}))
    with watched_attention(model, taken.__setitem__):
        model(torch.randn(1, 3, 32, 32))
    for number in range(3):
        tokens = taken[number].shape[-1]
        assert whole[number].shape == (1, 2, tokens + 2, tokens + 2) and tokens in (5, 65)
        assert torch.equal(taken[number], whole[number][:, :, :tokens, :tokens])


def test_a_model_by_name_leaves_the_caller_s_random_numbers():
    torch.manual_seed(5)
    truth = torch.rand(3)
    torch.manual_seed(5)
    named_model("vit_nano_patch4_32", device="cpu")
    assert torch.equal(torch.rand(3), truth)
