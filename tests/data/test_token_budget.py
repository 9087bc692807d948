"""What is evaluated at another number of tokens an image."""

import math

import torch

from longvision.data.config import DigitsData, MixedDigitsData
from longvision.data.token_budget import evaluate_within
from longvision.types import PackedImages


def test_in_packs_and_in_their_own_proportions():
    data = MixedDigitsData(workers=0).build()
    evaluate_within(data, 20, 4, packed=True)
    first = next(iter(data.val_dataloader()))[0]
    assert isinstance(first, PackedImages) and first.patches.shape[2] == 16
    assert len(first) == min(4096 // 20, len(data.images("val")))
    assert max(first.lengths) == 20 and min(first.lengths) > 12
    for row, (rows, columns) in enumerate(first.grids[:30]):
        image, _ = data.images("val")[row]
        assert abs(math.log(columns / rows * image.height / image.width)) < 0.5


def test_one_by_one():
    data = DigitsData(workers=0).build()
    for tokens, side in ((9, 12), (16, 16)):
        evaluate_within(data, tokens, 4, packed=False)
        images_BCHW, labels_B = next(iter(data.val_dataloader()))
        assert images_BCHW.shape == (1, 1, side, side) and labels_B.shape == (1,)
        assert torch.equal(images_BCHW[0], data.sample("val", 0)[1])
