"""Patches of any image size, and the sizes that the message offers."""

import pytest
import torch
import torch.nn.functional as F

from longvision.layers import PatchEmbed


def made(patch, stride, **options):
    return PatchEmbed(patch, stride, 3, 5, **options).double()


@pytest.mark.parametrize("patch, stride", [(16, 16), (16, 8), (4, 4), (4, 3)])
@pytest.mark.parametrize("rows, columns", [(1, 1), (2, 5), (3, 2)])
def test_each_patch_is_projected_row_by_row(patch, stride, rows, columns):
    embed = made(patch, stride)
    height, width = patch + stride * (rows - 1), patch + stride * (columns - 1)
    image = torch.randn(2, 3, height, width, dtype=torch.float64)
    tokens = embed(image)
    assert embed.grid_size(height, width) == (rows, columns)
    assert tokens.shape == (2, rows * columns, 5)
    for row in range(rows):
        for column in range(columns):
            cut = image[:, :, row * stride : row * stride + patch, column * stride : column * stride + patch]
            truth = torch.einsum("bchw,dchw->bd", cut, embed.proj.weight) + embed.proj.bias
            # float64, two orders of summation over at most 768 pixels
            torch.testing.assert_close(tokens[:, row * columns + column], truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride, size, nearest", [
    (16, (225, 224), "224x224 or 240x224"),
    (16, (223, 300), "208x288 or 224x304"),
    (16, (10, 32), "16x32"),
    (16, (10, 40), "16x32 or 16x48"),
    (16, (1, 1), "16x16"),
    (8, (225, 224), "224x224 or 232x224"),
    (8, (20, 24), "16x24 or 24x24"),
    (8, (12, 24), "16x24"),
    (8, (12, 27), "16x24 or 16x32"),
])  # fmt: skip
def test_the_message_names_the_nearest_sizes(stride, size, nearest):
    embed = made(16, stride)
    with pytest.raises(
        ValueError, match=f"image {size[0]}x{size[1]} does not divide .* resize to {nearest}, or pass pad"
    ):
        embed(torch.zeros(1, 3, *size, dtype=torch.float64))
    for offered in nearest.split(" or "):
        height, width = map(int, offered.split("x"))
        assert embed(torch.zeros(1, 3, height, width, dtype=torch.float64)).shape[1] >= 1


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("size, padded", [((31, 17), (32, 32)), ((1, 50), (16, 64)), ((32, 48), (32, 48))])
def test_pad_fills_with_zeros_right_and_below(stride, size, padded):
    if stride == 8:
        padded = tuple(max(16, -(-side // 8) * 8) for side in size)
    embed = made(16, stride, pad=True)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    larger = F.pad(image, (0, padded[1] - size[1], 0, padded[0] - size[0]))
    assert torch.equal(embed(image), embed(larger))
    assert embed.grid_size(*size) == embed.grid_size(*padded)


def test_wrong_channels_say_what_to_do():
    with pytest.raises(ValueError, match=r"shape \(1, 4, 16, 16\): expected \(batch, 3, height, width\).*in_chans"):
        made(16, 16)(torch.zeros(1, 4, 16, 16, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"shape \(3, 16, 16\)"):
        made(16, 16)(torch.zeros(3, 16, 16, dtype=torch.float64))
