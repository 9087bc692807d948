"""What cannot be measured together, told before torch is loaded."""

import pytest

from longvision.benchmark.plan import OpsPlan
from longvision.errors import UserError


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"models": []}, "--models"),
        ({"models": ["test_vit+fast"]}, "'fast'.*test_vit.materialised"),
        ({"models": ["test_vit+"]}, "''.*test_vit"),
        ({"models": ["test_vit+checkpoint"], "mode": "train"}, "give test_vit, .*--checkpoint"),
        ({"checkpoint": True}, "--mode train"),
        ({"head": "cascade", "dtype": "float64"}, "float64.*cascade"),
        ({"head": "detr", "dtype": "float64"}, "float64.*detr"),
        ({"baseline": "resnet18"}, "resnet18.*test_vit"),
    ],
)
def test_models_plans_that_cannot_be(plan, changes, named):
    with pytest.raises(UserError, match=named):
        plan(**{"models": ["test_vit"], "sizes": [32], **changes})


def test_an_odd_number_of_channels():
    with pytest.raises(UserError, match="--channels 7"):
        OpsPlan(tokens=[5], channels=7)
