"""Windows, scales and mirrors: what goes in comes out at its place, however an image is cut."""

import pytest
import torch

from longvision.inference.config import InferenceConfig
from longvision.inference.windows import augmented, probabilities, slide, whole, window_corners

SIZES = [(5, 5), (8, 8), (8, 20), (17, 9), (23, 31), (64, 40)]


def integers(height, width, channels=3):
    """Whole numbers, of which sums and their means are exact."""
    return torch.randint(-50, 50, (channels, height, width)).float()


class Copy:
    """A model whose logits are its input, and which remembers what it saw."""

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        self.seen.append(tuple(images.shape))
        return images


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop, stride", [((8, 8), (8, 8)), ((8, 8), (5, 3)), ((16, 7), (6, 7)), ((8, 8), (1, 2))])
def test_the_mean_of_windows_is_the_image_at_any_size(size, crop, stride):
    image = integers(*size)
    assert torch.equal(slide(lambda x: x, image, crop, stride, classes=3), image)


def naive(model, image_CHW, crop, stride):
    """One window after another: as many as are needed, the last one moved back."""
    height, width = image_CHW.shape[1:]
    total, count = torch.zeros_like(image_CHW), torch.zeros(height, width)
    top = 0
    while True:
        t, left = min(top, height - crop[0]), 0
        while True:
            s = min(left, width - crop[1])
            total[:, t : t + crop[0], s : s + crop[1]] += model(image_CHW[None, :, t : t + crop[0], s : s + crop[1]])[0]
            count[t : t + crop[0], s : s + crop[1]] += 1
            if left + crop[1] >= width:
                break
            left += stride[1]
        if top + crop[0] >= height:
            return total / count
        top += stride[0]


def by_place(images):
    """Logits that depend on where in its window a pixel lies."""
    height, width = images.shape[-2:]
    return images * torch.linspace(-1, 2, height)[:, None] + torch.linspace(0, 5, width) ** 2


@pytest.mark.parametrize("size", [(8, 8), (8, 20), (17, 9), (23, 31)])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_windows_match_a_naive_loop(size, batch):
    image = torch.randn(2, *size)
    got = slide(by_place, image, (8, 7), (5, 3), classes=2, batch=batch)
    torch.testing.assert_close(got, naive(by_place, image, (8, 7), (5, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "size, corners",
    [
        ((8, 8), [(0, 0)]),
        ((8, 12), [(0, 0), (0, 4)]),
        ((8, 13), [(0, 0), (0, 4), (0, 5)]),
        ((9, 12), [(0, 0), (0, 4), (1, 0), (1, 4)]),
    ],
)
def test_windows_start_at_multiples_of_the_stride_and_the_last_moves_back(size, corners):
    assert list(window_corners(size, (8, 8), (4, 4))) == corners


def test_windows_come_in_batches_and_each_once():
    model = Copy()
    slide(model, integers(20, 30), (8, 8), (6, 6), classes=3, batch=4)  # 3 x 5 windows
    assert [shape[0] for shape in model.seen] == [4, 4, 4, 3]
    assert {shape[1:] for shape in model.seen} == {(3, 8, 8)}


def test_an_image_smaller_than_the_window_is_padded_by_zeros_on_the_right_and_below():
    seen = []
    slide(lambda x: seen.append(x) or x, torch.ones(1, 3, 5), (8, 6), (8, 6), classes=1)
    (window,) = seen
    assert window.shape == (1, 1, 8, 6)
    assert window[0, 0, :3, :5].eq(1).all() and window.sum() == 15


def test_logits_are_summed_in_float32():
    logits = slide(lambda x: x.half(), torch.full((1, 8, 40), 1000.0), (8, 8), (1, 1), classes=1)
    assert logits.dtype == torch.float32 and logits.eq(1000).all()
    assert whole(lambda x: x.half(), torch.ones(1, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize("stride", [(0, 4), (4, 9), (-1, 4)])
def test_a_stride_that_leaves_pixels_unseen_is_refused(stride):
    with pytest.raises(ValueError, match="stride"):
        slide(lambda x: x, torch.ones(1, 8, 8), (8, 8), stride, classes=1)


def test_logits_of_another_size_or_number_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\) for images of 8x8: expected \(1, 3, 8, 8\)"):
        slide(lambda x: x[..., ::2, ::2], torch.ones(3, 8, 8), (8, 8), (8, 8), classes=3)
    with pytest.raises(ValueError, match=r"\(1, 1, 8, 8\) for images of 8x8: expected \(1, 3, 8, 8\)"):
        slide(lambda x: x[:, :1], torch.ones(3, 8, 8), (8, 8), (8, 8), classes=3)
    with pytest.raises(ValueError, match="expected"):
        whole(lambda x: x[..., ::2, ::2], torch.ones(3, 8, 8))


def test_the_whole_image_is_seen_at_once():
    model, image = Copy(), integers(33, 1)
    assert torch.equal(whole(model, image), image)
    assert model.seen == [(1, 3, 33, 1)]


def test_without_scales_and_mirrors_probabilities_are_the_softmax():
    image = torch.randn(4, 9, 7)
    assert torch.equal(augmented(lambda x: x, image), image.softmax(0))


def test_what_a_mirrored_image_gives_is_mirrored_back():
    image = torch.randn(4, 9, 7)
    torch.testing.assert_close(augmented(lambda x: x, image, flip=True), image.softmax(0))


def test_mirrors_are_averaged_as_probabilities():
    image = torch.randn(4, 9, 6)
    ramp = torch.linspace(0, 6, 6) * torch.arange(4.0)[:, None, None]
    expected = ((image + ramp).softmax(0) + (image + ramp.flip(-1)).softmax(0)) / 2
    torch.testing.assert_close(augmented(lambda x: x + ramp, image, flip=True), expected)


def test_every_scale_is_seen_with_and_without_mirror():
    seen = []
    augmented(lambda x: seen.append(tuple(x.shape)) or x, torch.randn(2, 10, 6), (0.5, 1.0, 1.75), flip=True)
    assert seen == [(2, 5, 3)] * 2 + [(2, 10, 6)] * 2 + [(2, 18, 10)] * 2


def test_scales_bring_a_smooth_image_back():
    """A plane is what bilinear resizing keeps, but for the three pixels that the edge reaches."""
    plane = torch.linspace(0, 1, 40)[:, None] + torch.linspace(-1, 0, 60)
    image = torch.stack([plane, -plane])
    got = augmented(lambda x: x, image, (0.5, 1.0, 2.0))
    torch.testing.assert_close(got[:, 3:-3, 3:-3], image.softmax(0)[:, 3:-3, 3:-3], rtol=0, atol=1e-5)


def test_a_smaller_scale_averages_what_falls_together():
    """Every second column would be all of one colour."""
    image = torch.zeros(1, 8, 8)
    image[..., ::2] = 1
    seen = []
    augmented(lambda x: seen.append(x) or x, image, (0.25,))
    torch.testing.assert_close(seen[0], torch.full((1, 2, 2), 0.5), rtol=0, atol=0.05)


def test_probabilities_sum_to_one_at_every_scale():
    got = augmented(lambda x: 5 * x, torch.randn(5, 13, 11), (0.5, 0.75, 1.25, 3.0), flip=True)
    assert got.shape == (5, 13, 11)
    torch.testing.assert_close(got.sum(0), torch.ones(13, 11))


def test_a_scale_below_a_pixel_leaves_one():
    assert augmented(lambda x: x, torch.randn(2, 3, 3), (0.01,)).shape == (2, 3, 3)


@pytest.mark.parametrize("scales", [(), (0,), (1.0, -1)])
def test_impossible_scales_are_refused(scales):
    with pytest.raises(ValueError, match="scales"):
        augmented(lambda x: x, torch.ones(1, 4, 4), scales)


def test_scales_and_windows_together():
    image = torch.randn(3, 21, 18)
    got = augmented(lambda x: slide(lambda y: y, x, (8, 8), (6, 6), 3), image, (1.0, 0.5))
    half = torch.nn.functional.interpolate(image[None], (10, 9), mode="bilinear", antialias=True)
    back = torch.nn.functional.interpolate(half, (21, 18), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(got, (image.softmax(0) + back.softmax(0)) / 2)


# -- as a configuration says


@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(),
        InferenceConfig(window=8),
        InferenceConfig(window=8, stride=3),
        InferenceConfig(flip=True),
        InferenceConfig(window=8, flip=True),
    ],
)
def test_every_configuration_gives_the_same_of_a_model_without_context(config):
    image = torch.randn(3, 13, 21)
    torch.testing.assert_close(probabilities(Copy(), image, 3, (13, 21), config), image.softmax(0))


def test_windows_overlap_by_a_third_where_nothing_else_is_said():
    model = Copy()
    probabilities(model, torch.zeros(2, 512, 853), 2, (512, 853), InferenceConfig(window=512))
    assert model.seen == [(2, 2, 512, 512)]  # 0 and 341


def test_batch_is_how_many_windows_the_model_sees_at_once():
    model = Copy()
    probabilities(model, torch.zeros(2, 8, 40), 2, (8, 40), InferenceConfig(window=8, stride=8), batch=2)
    assert [shape[0] for shape in model.seen] == [2, 2, 1]


def test_every_scale_of_a_configuration_is_mirrored_too():
    model = Copy()
    probabilities(model, torch.zeros(2, 8, 12), 2, (8, 12), InferenceConfig(scales=(0.5, 1.0, 2.0), flip=True))
    assert [shape[2:] for shape in model.seen] == [(4, 6)] * 2 + [(8, 12)] * 2 + [(16, 24)] * 2


def test_probabilities_have_the_size_of_the_original_image():
    shares = probabilities(Copy(), torch.randn(3, 8, 12), 3, (20, 31), InferenceConfig())
    assert shares.shape == (3, 20, 31)
    torch.testing.assert_close(shares.sum(0), torch.ones(20, 31))
