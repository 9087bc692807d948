"""Every kind of position embeddings in a model: sizes, files, optimisers, packed images, graph tools."""

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2

from longvision.errors import UserError
from longvision.layers.factorised import FACTORISED
from longvision.models.weights.files import load_weights, save_weights
from longvision.types import PackedImages

EVERY = pytest.mark.parametrize("positions", ["absolute", *FACTORISED])


def small(positions="absolute", **options):
    torch.manual_seed(1)
    options = {"depth": 2, "embed_dim": 16, "img_size": (16, 24), "num_classes": 5, **options}
    return timm.create_model("vim_nano_patch4_32", positions=positions, **options).eval()


@EVERY
@torch.no_grad()
def test_an_input_size_that_is_set_changes_nothing_at_that_size(positions):
    model = small(positions)
    for size in ((32, 12), (8, 40)):
        image = torch.randn(2, 3, *size)
        truth = model(image)
        model.set_input_size(size)
        assert model.grid == (size[0] // 4, size[1] // 4)
        assert torch.equal(model(image), truth)
        if positions.endswith("learned"):
            assert (len(model.pos_embed.rows), len(model.pos_embed.columns)) == model.grid


@EVERY
@torch.no_grad()
def test_weights_for_another_size(positions, tmp_path):
    source, other = small(positions), small(positions, img_size=(20, 16))
    save_weights(source, tmp_path / "weights.safetensors")
    load_weights(other, tmp_path / "weights.safetensors")
    image = torch.randn(2, 3, 20, 16)
    assert torch.equal(other(image), source(image))
    assert len({key for key in other.state_dict() if key.startswith("pos_embed")}) == (
        1 if positions == "absolute" else 0 if positions.endswith("sinusoidal") else 2
    )


@pytest.mark.parametrize("positions", FACTORISED)
def test_weights_with_other_positions_are_refused_by_name(positions, tmp_path):
    for kind in ("absolute", "fractional_learned", "factorised_sinusoidal"):
        if kind != positions:
            save_weights(small(kind), tmp_path / f"{kind}.safetensors")
            with pytest.raises(UserError, match=f"positions='{kind}'"):
                load_weights(small(positions), tmp_path / f"{kind}.safetensors")
    save_weights(small(positions), tmp_path / "own.safetensors")
    with pytest.raises(UserError, match=f"positions='{positions}'"):
        load_weights(small(), tmp_path / "own.safetensors")


@pytest.mark.parametrize("cls_token", ["none", "middle", "double"])
@EVERY
def test_packed_images_have_the_positions_of_their_own_grids(positions, cls_token):
    """Values and every gradient; float64, another order of summation."""
    model = small(positions, cls_token=cls_token, depth=1).double()
    images = [torch.randn(3, *size, dtype=torch.float64) for size in ((16, 24), (8, 12), (28, 4), (16, 24))]
    kept = [torch.tensor(numbers) for numbers in ([0, 7, 23], [5], [0, 1, 2, 6], [2, 3])]
    packed = model(PackedImages.from_images(images, 4))
    alone = torch.cat([model(image[None]) for image in images])
    dropped = model(PackedImages.from_images(images, 4, kept=kept))
    dropped_alone = torch.cat(
        [model(PackedImages.from_images([image], 4, kept=[own])) for image, own in zip(images, kept)]
    )
    weights = torch.randn_like(packed)
    for got, truth in ((packed, alone), (dropped, dropped_alone)):
        torch.testing.assert_close(got, truth, rtol=1e-11, atol=1e-12)
        found = torch.autograd.grad((got * weights).sum(), model.parameters())
        expected = torch.autograd.grad((truth * weights).sum(), model.parameters())
        for (name, _), a, b in zip(model.named_parameters(), found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


@EVERY
def test_optimisers_know_them(positions):
    model = small(positions)
    own = {name for name, _ in model.named_parameters() if name.startswith("pos_embed")}
    assert own <= model.no_weight_decay() <= {name for name, _ in model.named_parameters()}
    groups = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5).param_groups
    of = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    stem = of[id(model.patch_embed.proj.weight)][0]
    assert all(of[id(p)] == (stem, 0) for name, p in model.named_parameters() if name in own)
    assert len(of) == len(list(model.parameters()))


@EVERY
def test_every_parameter_gets_a_gradient(positions):
    model = small(positions).train()
    model(torch.randn(2, 3, 8, 32)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@EVERY
def test_on_the_meta_device_and_traced(positions):
    with torch.device("meta"):
        model = small(positions)
        assert model(torch.empty(1, 3, 16, 24)).shape == (1, 5)
        assert model(PackedImages.from_images([torch.empty(3, 8, 12), torch.empty(3, 16, 8)], 4)).shape == (2, 5)
    model, image = small(positions), torch.randn(1, 3, 8, 12)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(image), model(image), rtol=1e-5, atol=1e-5)  # unfused: in another order
    assert set(dict(traced.named_parameters())) == set(dict(model.named_parameters()))


def test_words_that_are_no_positions():
    with pytest.raises(UserError, match=r"'fourier'.*fractional_fourier"):
        small("fourier")
