"""Segmentation heads on backbones: any size, the auxiliary head, gradients, and what is refused."""

import pytest
import torch

pytest.importorskip("segmentation_models_pytorch")
from longvision.heads.segmentation import create_segmenter

SMALL = {"depth": 2, "embed_dim": 32}


def make(name="vim_nano_patch4_32", head="upernet", args=SMALL, width=64, auxiliary=True, **options):
    return create_segmenter(name, head, 5, 3, (64, 64), args=args, width=width, auxiliary=auxiliary, **options)


@pytest.mark.parametrize("head", ["upernet", "fpn"])
@pytest.mark.parametrize("height, width", [(64, 64), (50, 70), (33, 1)])
def test_logits_of_every_size(head, height, width):
    model = make(head=head)
    x = torch.randn(2, 3, height, width)
    logits, coarse = model.train()(x)
    assert logits.shape == coarse.shape == (2, 5, height, width)
    assert model.eval()(x).shape == (2, 5, height, width)


@pytest.mark.parametrize("name", ["vim_nano_patch4_32", "deit_tiny_patch16_224", "resnet10t", "efficientvit_m0"])
@pytest.mark.parametrize("head", ["upernet", "fpn"])
def test_every_parameter_learns(name, head):
    model = make(name, head, args={"depth": 2} if "patch" in name else {}).train()
    logits, coarse = model(torch.randn(2, 3, 64, 96))
    (logits.square().mean() + coarse.square().mean()).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("head", ["upernet", "fpn"])
def test_convolutions_stay_channels_last_and_change_nothing_by_it(head):
    model = make(head=head).eval()
    model.load_state_dict({key: value.contiguous() for key, value in model.state_dict().items()})
    kernels = [one for one in model.decoder.parameters() if one.dim() == 4 and one.shape[-1] == 3]
    assert kernels and all(one.is_contiguous(memory_format=torch.channels_last) for one in kernels)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        last = model(x)
        torch.testing.assert_close(last, model.to(memory_format=torch.contiguous_format)(x), rtol=1e-4, atol=1e-5)


def test_without_auxiliary_head_training_gives_logits_alone():
    model = make(auxiliary=False)
    assert model.auxiliary is None
    assert isinstance(model.train()(torch.randn(2, 3, 64, 64)), torch.Tensor)


@pytest.mark.parametrize("head", ["upernet", "fpn"])
def test_an_answer_lies_where_its_pixels_are(head):
    """What changes in one corner of the image changes the logits there most."""
    torch.manual_seed(0)
    model = make(head=head).eval()
    x = torch.zeros(1, 3, 128, 128)
    y = x.clone()
    y[:, :, 96:, :32] = 1
    with torch.no_grad():
        change_HW = (model(y) - model(x)).abs().sum((0, 1))
    inside = change_HW[104:120, 8:24].mean()
    for rows, columns in (
        (slice(0, 32), slice(0, 32)),
        (slice(0, 32), slice(96, 128)),
        (slice(96, 128), slice(96, 128)),
    ):
        assert inside > 2 * change_HW[rows, columns].mean()


def test_the_image_s_padding_does_not_reach_far():
    """An image that is padded inside is answered as the same image with those zeros given."""
    model = make().eval()
    x = torch.randn(1, 3, 50, 70)
    padded = torch.nn.functional.pad(x, (0, 26, 0, 14))
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(padded)[:, :, :50, :70])


def test_what_it_refuses():
    with pytest.raises(ValueError, match="head 'unet' is unknown: choose upernet or fpn"):
        make(head="unet")
    with pytest.raises(ValueError, match="width 48: fpn needs a multiple of 64"):
        make(head="fpn", width=48)
    with pytest.raises(ValueError, match="width 0: upernet needs at least 1 channel"):
        make(width=0)
    with pytest.raises(ValueError, match="did you mean"):
        make("vim_tiny_patch16_225")
    with pytest.raises(ValueError, match="does not take these"):
        make(args={"deepth": 3})
