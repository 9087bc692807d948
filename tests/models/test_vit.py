"""The vision transformer that packs: timm's in all it computes, and each packed image as if it were alone."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from longvision.errors import UserError
from longvision.layers.tokens import CLASS_TOKENS
from longvision.types import PackedImages
from support.packed import check_as_alone

SIZES = (8, 12), (16, 16), (4, 20), (12, 8)
KEPT = [torch.tensor(numbers) for numbers in ([0, 2, 5], [3, 9, 10, 15], [4], [0, 1, 2, 3, 4, 5])]


def small(**options):
    torch.manual_seed(1)
    options = {"img_size": 16, "embed_dim": 16, "depth": 2, "num_classes": 5, **options}
    return timm.create_model("vit_nano_patch4_32", **options).double()


def images():
    return [torch.randn(3, *size, dtype=torch.float64) for size in SIZES]


def test_it_is_timm_s_transformer():
    ours = timm.create_model("vit_nano_patch4_32").double()
    theirs = VisionTransformer(32, 4, embed_dim=128, depth=4, num_heads=4, mlp_ratio=2, num_classes=10).double()
    theirs.load_state_dict(ours.state_dict())
    image, weights = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.randn(2, 10, dtype=torch.float64)
    got, truth = ours(image), theirs(image)
    torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-13)
    found = torch.autograd.grad((got * weights).sum(), ours.parameters())
    expected = dict(
        zip(
            [n for n, _ in theirs.named_parameters()], torch.autograd.grad((truth * weights).sum(), theirs.parameters())
        )
    )
    for (name, _), gradient in zip(ours.named_parameters(), found, strict=True):
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("cls_token", CLASS_TOKENS)
@pytest.mark.parametrize("pool", ["token", "mean", "max"])
def test_each_image_as_if_alone(cls_token, pool):
    if pool == "token" and cls_token == "none":
        return
    model, several = small(cls_token=cls_token, pool=pool), images()
    check_as_alone(model, PackedImages.from_images(several, 4), [image[None] for image in several])


@pytest.mark.parametrize("options", [{}, {"pool": "mean", "positions": "fractional_fourier"}], ids=str)
def test_with_patches_dropped(options):
    model, several = small(**options), images()
    alone = [PackedImages.from_images([image], 4, kept=[own]) for image, own in zip(several, KEPT)]
    check_as_alone(model, PackedImages.from_images(several, 4, kept=KEPT), alone)


def test_in_float32():
    """To the 1e-5 that packing promises; with checkpointing, too."""
    model, several = small().float(), [image.float() for image in images()]
    model.set_grad_checkpointing()
    packed = model(PackedImages.from_images(several, 4))
    torch.testing.assert_close(packed, torch.cat([model(image[None]) for image in several]), rtol=1e-5, atol=1e-5)


def test_features_and_head():
    model, packed = small().eval(), PackedImages.from_images(images(), 4)
    features = model.forward_features(packed)
    assert features.shape == (1, sum(packed.lengths) + len(packed), 16)
    torch.testing.assert_close(model.forward_head(features, images=packed), model(packed))
    with pytest.raises(UserError, match="images="):
        model.forward_head(features)
    maps = model.forward_intermediates(packed, intermediates_only=True)
    assert [tuple(one.shape[2:]) for one in maps[0]] == list(packed.grids)


def test_what_raises():
    with pytest.raises(UserError, match=r"num_heads 3 .*embed_dim 16"):
        small(num_heads=3)
    with pytest.raises(UserError, match="num_heads 0"):
        small(num_heads=0)


@pytest.mark.slow
def test_compiled_it_is_the_same():
    model, packed = small(depth=1), PackedImages.from_images(images(), 4)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(packed), model(packed), rtol=1e-11, atol=1e-12)
