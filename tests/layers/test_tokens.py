"""Where class tokens stand: positions written out, and insertion undone."""

import pytest
import torch

from longvision.layers import ClassTokens
from longvision.layers.tokens import CLASS_TOKENS


@pytest.mark.parametrize("kind, patches, expected", [
    ("none", 4, [1, 2, 3, 4]),
    ("head", 4, [-1, 1, 2, 3, 4]),
    ("middle", 4, [1, 2, -1, 3, 4]),
    ("middle", 5, [1, 2, -1, 3, 4, 5]),
    ("middle", 1, [-1, 1]),
    ("double", 4, [-1, 1, 2, 3, 4, -2]),
    ("double", 1, [-1, 1, -2]),
])  # fmt: skip
def test_positions(kind, patches, expected):
    tokens = ClassTokens(kind)
    patches_BMD = torch.arange(1.0, patches + 1).view(1, patches, 1)
    classes_BTD = -torch.arange(1.0, tokens.count + 1).view(1, tokens.count, 1)
    assert tokens.insert(patches_BMD, classes_BTD if tokens.count else None).flatten().tolist() == expected


@pytest.mark.parametrize("kind", CLASS_TOKENS)
@pytest.mark.parametrize("patches", [1, 2, 3, 14, 15, 196])
def test_extraction_undoes_insertion(kind, patches):
    tokens = ClassTokens(kind)
    patches_BMD, classes_BTD = torch.randn(2, patches, 3), torch.randn(2, tokens.count, 3)
    x_BMD = tokens.insert(patches_BMD, classes_BTD if tokens.count else None)
    assert x_BMD.shape == (2, patches + tokens.count, 3)
    got_patches, got_classes = tokens.extract(x_BMD)
    assert torch.equal(got_patches, patches_BMD) and torch.equal(got_classes, classes_BTD)
    assert torch.equal(tokens.insert(got_patches, got_classes if tokens.count else None), x_BMD)


def test_the_paper_s_place_at_224_pixels():
    """197 tokens: 98 patches, the class token, 98 patches."""
    x_BMD = ClassTokens("middle").insert(torch.zeros(1, 196, 1), torch.ones(1, 1, 1))
    assert x_BMD.flatten().nonzero().item() == 98


def test_unknown_kind_names_the_known():
    with pytest.raises(ValueError, match="cls_token='center' is unknown: choose one of none, head, middle, double"):
        ClassTokens("center")
