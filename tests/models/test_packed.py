"""Images of different sizes in one sequence: each is computed as if it were alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from longvision.errors import UserError
from longvision.layers.mixer import DIRECTIONS
from longvision.layers.tokens import CLASS_TOKENS
from longvision.models import Vim
from longvision.models.sequence import SequenceBackbone
from longvision.ops import common
from longvision.types import PackedImages

SIZES = (8, 12), (8, 8), (4, 20), (12, 8), (8, 12)  # pixels; the model holds positions for the second
KEPT = [torch.tensor(numbers) for numbers in ([0, 2, 3], [3], [0, 1, 2, 3, 4], [1, 4], [0, 5])]  # of their patches


def small(**options):
    torch.manual_seed(1)
    return Vim(**{"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5, **options}).double()


def images(sizes=SIZES, channels=3):
    return [torch.randn(channels, *size, dtype=torch.float64) for size in sizes]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_as_alone(model, images, patch=4, stride=4, kept=None):
    """Values and every gradient. Float64; sums over tokens and images in another order."""
    packed = model(PackedImages.from_images(images, patch, stride, kept))
    if kept is None:
        alone = torch.cat([model(image[None]) for image in images])
    else:
        alone = torch.cat([model(PackedImages.from_images([i], patch, stride, [k])) for i, k in zip(images, kept)])
    torch.testing.assert_close(packed, alone, rtol=1e-11, atol=1e-12)
    weights = torch.randn_like(alone)
    got, truth = gradients(model, (packed * weights).sum()), gradients(model, (alone * weights).sum())
    assert got.keys() == truth.keys()
    for name, gradient in truth.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-11, msg=name)
    return packed


@pytest.mark.parametrize("cls_token", CLASS_TOKENS)
@pytest.mark.parametrize("pool", ["token", "mean", "max"])
def test_each_image_as_if_alone(cls_token, pool):
    if pool == "token" and cls_token == "none":
        return
    packed = check_as_alone(small(cls_token=cls_token, pool=pool), images())
    assert packed.shape == (len(SIZES), 5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_in_every_direction(direction):
    model = small(direction=direction).eval()  # "sequence" flips at random in training
    check_as_alone(model, images())


def test_overlapping_patches():
    check_as_alone(small(stride=2), images(), stride=2)


@pytest.mark.parametrize("cls_token", CLASS_TOKENS)
def test_with_patches_dropped(cls_token):
    pool = "token" if cls_token == "middle" else "mean"
    check_as_alone(small(cls_token=cls_token, pool=pool), images(), kept=KEPT)


@pytest.mark.parametrize("kept", [None, KEPT], ids=["whole", "dropped"])
def test_in_float32(kept):
    """To the 1e-5 that packing promises."""
    model, several = small().float(), [image.float() for image in images()]
    packed = model(PackedImages.from_images(several, 4, kept=kept))
    each = zip(several, kept or [None] * len(several))
    alone = [model(PackedImages.from_images([image], 4, kept=None if own is None else [own])) for image, own in each]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_patches_that_are_left_keep_their_positions():
    """And the class token stands in the middle of them: the model's own parts, called one by one."""
    model, image, kept = small(img_size=(8, 12)), images()[0], torch.tensor([0, 1, 3, 5])
    x_1MD = model.patch_embed(image[None])[:, kept]
    patch_rows = model.pos_embed[:, [0, 1, 2, 4, 5, 6]][:, kept]
    x_1MD = torch.cat([x_1MD + patch_rows, model.cls_token + model.pos_embed[:, 3:4]], dim=1)[:, [0, 1, 4, 2, 3]]
    for block in model.layers:
        x_1MD = block(x_1MD)
    truth = model.head(model.norm_f(x_1MD)[:, 2])
    torch.testing.assert_close(model(PackedImages.from_images([image], 4, kept=[kept])), truth, rtol=1e-11, atol=1e-12)


def test_all_patches_kept_is_none_dropped():
    model, several = small(), images()
    every = [torch.arange(height * width // 16) for height, width in SIZES]
    whole, kept = PackedImages.from_images(several, 4), PackedImages.from_images(several, 4, kept=every)
    torch.testing.assert_close(model(kept), model(whole), rtol=1e-12, atol=1e-12)


def test_no_maps_of_images_whose_patches_were_dropped():
    model, packed = small(), PackedImages.from_images(images(), 4, kept=KEPT)
    with pytest.raises(UserError, match="NLC"):
        model.forward_intermediates(packed)
    _, tokens = model.forward_intermediates(packed, output_fmt="NLC")
    assert [x_1MD.shape[1] for x_1MD in tokens[0]] == [len(numbers) for numbers in KEPT]


def test_one_image_and_grey_images():
    check_as_alone(small(), images([(8, 12)]))
    check_as_alone(small(in_chans=1), images(channels=1))


def test_with_checkpointing_and_at_a_rate_of_stochastic_depth():
    model = small(drop_path_rate=0.2)
    model.set_grad_checkpointing()
    model.eval()
    check_as_alone(model, images())
    assert model.train()(PackedImages.from_images(images(), 4)).shape == (len(SIZES), 5)


def test_flipped_images_are_flipped_by_themselves():
    """In training, direction "sequence" scans a random half of them backward."""
    model, reverse = small(direction="sequence"), small(direction="sequence").eval()
    for block in reverse.layers:
        block.mixer.reverse = True
    many = images(SIZES * 4)
    packed = model.train()(PackedImages.from_images(many, 4))
    forth = torch.cat([model.eval()(image[None]) for image in many])
    back = torch.cat([reverse(image[None]) for image in many])
    went_forth, went_back = (torch.isclose(packed, way, rtol=0, atol=1e-12).all(1) for way in (forth, back))
    assert (went_forth ^ went_back).all()
    assert went_forth.any() and went_back.any()


def test_features_and_intermediates():
    model, several = small(cls_token="double").eval(), images()
    packed = PackedImages.from_images(several, 4)
    features = model.forward_features(packed)
    assert features.shape == (1, sum(packed.lengths) + 2 * len(packed), 16)
    torch.testing.assert_close(model.forward_head(features, images=packed), model(packed))
    assert model.forward_head(features, pre_logits=True, images=packed).shape == (len(packed), 16)

    final, maps = model.forward_intermediates(packed, norm=True)
    assert torch.equal(final, features) and [len(each) for each in maps] == [len(packed)] * 2
    both = model.forward_intermediates(packed, return_prefix_tokens=True, intermediates_only=True)
    for i, image in enumerate(several):
        alone = model.forward_intermediates(image[None], return_prefix_tokens=True, intermediates_only=True)
        for (of_packed, prefixes), (of_one, prefix) in zip(both, alone, strict=True):
            torch.testing.assert_close(of_packed[i], of_one)
            torch.testing.assert_close(prefixes[i], prefix)


def test_features_without_their_images_are_not_pooled_as_one():
    model = small(pool="mean").eval()
    packed = PackedImages.from_images(images(), 4)
    final, _ = model.forward_intermediates(packed)
    for features in (model.forward_features(packed), final):
        with pytest.raises(UserError, match="images="):
            model.forward_head(features)
        assert model.forward_head(features, images=packed).shape == (len(packed), 5)
    one = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(model.forward_head(model.forward_features(one)), model(one))


@pytest.mark.slow
def test_compiled_it_is_the_same():
    """Values and every gradient, and again for other grids."""
    model = small(depth=1)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for sizes in (SIZES[:3], SIZES[1:]):
        packed = PackedImages.from_images(images(sizes), 4)
        weights = torch.randn(len(packed), 5, dtype=torch.float64)
        truth, got = model(packed), compiled(packed)
        torch.testing.assert_close(got, truth, rtol=1e-11, atol=1e-12)
        expected, found = gradients(model, (truth * weights).sum()), gradients(model, (got * weights).sum())
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-11, msg=name)


def test_no_block_looks_at_the_boundaries(monkeypatch):
    """On a GPU that would be to wait for it."""
    looked = []
    monkeypatch.setattr(common, "_is_free_to_read", lambda tensor: False)
    monkeypatch.setattr(common, "_check_boundaries", lambda *found: looked.append(found))
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "chunked")
    model, packed = small(), PackedImages.from_images(images(), 4)
    model(packed).sum().backward()
    with torch.inference_mode():
        model(packed)
    assert not looked


# The type


@pytest.mark.parametrize("patch, stride", [(4, None), (4, 2), (3, 1), (2, 5)])
def test_patches_are_a_convolution_s(patch, stride):
    step = stride or patch
    several = [torch.randn(2, patch + rows * step, patch + columns * step) for rows, columns in ((0, 0), (2, 1))]
    packed = PackedImages.from_images(several, patch, stride)
    assert packed.grids == ((1, 1), (3, 2)) and packed.lengths == (1, 6) and len(packed) == 2
    unfolded = [F.unfold(image[None], patch, stride=step).mT for image in several]
    assert torch.equal(packed.patches, torch.cat(unfolded, dim=1))


def test_what_is_not_packed():
    with pytest.raises(ValueError, match="at least one"):
        PackedImages.from_images([], 4)
    with pytest.raises(ValueError, match="8x10 does not divide into patches of 4"):
        PackedImages.from_images([torch.zeros(3, 8, 10)], 4)
    with pytest.raises(ValueError, match="2x8 does not divide"):
        PackedImages.from_images([torch.zeros(3, 2, 8)], 4)
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        PackedImages.from_images([torch.zeros(8, 8)], 4)
    with pytest.raises(ValueError, match=r"\(1, 5, 48\).*\(1, 6, "):
        PackedImages(torch.zeros(1, 5, 48), ((2, 3),))
    with pytest.raises(ValueError, match=r"\(2, 6, 48\)"):
        PackedImages(torch.zeros(2, 6, 48), ((2, 3),))
    with pytest.raises(ValueError, match="at least one patch each"):
        PackedImages(torch.zeros(1, 6, 48), ((2, 3), (0, 4)))


def test_patches_that_are_left():
    several = images([(8, 8), (8, 12)])
    packed = PackedImages.from_images(several, 4, kept=[torch.tensor([0, 3]), torch.tensor([1, 2, 5])])
    assert packed.grids == ((2, 2), (2, 3)) and packed.lengths == (2, 3) and packed.kept.tolist() == [0, 3, 1, 2, 5]
    whole = PackedImages.from_images(several, 4).patches
    assert torch.equal(packed.patches, whole[:, [0, 3, 4 + 1, 4 + 2, 4 + 5]])


@pytest.mark.parametrize(
    "kept, lengths, named",
    [
        ([0, 3, 1, 2, 6], (2, 3), "grid"),  # the second has patches 0 to 5
        ([0, 4, 1, 2, 5], (2, 3), "grid"),
        ([-1, 3, 1, 2, 5], (2, 3), "grid"),
        ([3, 0, 1, 2, 5], (2, 3), "rise"),
        ([3, 3, 1, 2, 5], (2, 3), "rise"),
        ([0, 3, 1, 2], (2, 3), r"\(4,\)"),
        ([0.0, 3, 1, 2, 5], (2, 3), "float32"),
        ([0, 3, 1, 2, 5], (2, 4), r"\(2, 4\)"),
        ([0, 3, 1, 2, 5], (5, 0), r"\(5, 0\)"),
        ([0, 3, 1, 2, 5], (5,), r"\(5,\)"),
        ([0, 3, 1, 2, 5], (), "lengths"),
        (None, (2, 3), "kept="),
    ],
    ids=str,
)
def test_what_is_not_left(kept, lengths, named):
    kept = None if kept is None else torch.tensor(kept)
    with pytest.raises(ValueError, match=named):
        PackedImages(torch.zeros(1, 5, 48), ((2, 2), (2, 3)), kept, lengths)


def test_moved_all_of_it_is_and_nothing_is_looked_at_again(monkeypatch):
    packed = PackedImages.from_images(images(), 4, kept=KEPT)
    monkeypatch.setattr(PackedImages, "__post_init__", None)
    moved = packed.to("meta")
    assert moved.patches.is_meta and moved.kept.is_meta
    assert (moved.grids, moved.lengths) == (packed.grids, packed.lengths) and not packed.patches.is_meta


def test_pinned_all_of_it_is(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)  # needs a GPU
    packed = PackedImages.from_images(images(), 4, kept=KEPT)
    assert torch.equal(packed.pin_memory().patches, packed.patches + 1)
    assert torch.equal(packed.pin_memory().kept, packed.kept + 1)
    assert PackedImages.from_images(images(), 4).pin_memory().kept is None


def test_patches_of_another_side():
    with pytest.raises(ValueError, match=r"12 numbers: expected 3 x 4 x 4 = 48"):
        small()(PackedImages.from_images(images(), 2))


def test_a_backbone_that_cannot_pack_refuses_by_name():
    class Convolutional(SequenceBackbone):
        def __init__(self):
            super().__init__(lambda i, rate: nn.Linear(8, 8), nn.LayerNorm, embed_dim=8, depth=1)

    packed = PackedImages.from_images([torch.zeros(3, 16, 16)], 16)
    for method in ("forward", "forward_features", "forward_intermediates"):
        with pytest.raises(UserError, match="Convolutional"):
            getattr(Convolutional(), method)(packed)
