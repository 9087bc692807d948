"""What can be said of inference, and what is refused."""

import pytest

from longvision.errors import UserError
from longvision.inference.config import InferenceConfig


def test_scales_are_a_tuple_wherever_they_come_from():
    assert InferenceConfig(scales=[0.5, 1]) == InferenceConfig(scales=(0.5, 1))
    assert hash(InferenceConfig(scales=[0.5])) == hash(InferenceConfig(scales=(0.5,)))


@pytest.mark.parametrize(
    "values, named",
    [
        ({"window": 0}, ["window 0"]),
        ({"window": 8, "stride": 9}, ["stride 9", "1 to 8"]),
        ({"window": 8, "stride": 0}, ["stride 0", "1 to 8"]),
        ({"stride": 4}, ["stride 4", "--model.inference.window"]),
        ({"scales": ()}, ["scales []"]),
        ({"scales": (1.0, 0.0)}, ["scales [1.0, 0.0]"]),
    ],
)
def test_refused(values, named):
    with pytest.raises(UserError) as error:
        InferenceConfig(**values)
    assert all(words in str(error.value) for words in named)
