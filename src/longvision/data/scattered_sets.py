"""The embedded digits as a classification problem: which one occurs most in a picture of any size?"""

from longvision.data.augment import Augment
from longvision.data.images import Channels
from longvision.data.module import ClassificationData, both_sides
from longvision.data.preprocess import Preprocess
from longvision.data.scattered import COUNTS, ScatteredDigitsSource

PLAIN = Augment(crop_scale=None, flip=0.0)  # a crop could change the answer, a mirrored digit is none


class MostDigitsData(ClassificationData):
    """Handwritten digits scattered over textured pictures, to be counted: 200 validate, 400 of other writers test.

    Args:
        size: side of the square pictures, or height and width; 32 pixels or more.
        channels: 1 for grey, 3 for colour.
        batch_size: pictures a step.
        workers: processes that make pictures; at most 4, one a core, when left out.
        pictures: how many train.
        seed: another one is another set.
        mean: mean of each channel on the scale 0..1; ImageNet's when left out.
        std: standard deviation of each channel; ImageNet's when left out.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 256,
        channels: Channels = 1,
        batch_size: int = 16,
        workers: int | None = None,
        pictures: int = COUNTS["train"],
        seed: int = 0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        preprocess = Preprocess(both_sides(size), channels, 1.0, mean or (), std or ())
        source = ScatteredDigitsSource(preprocess.size, channels, {"train": pictures}, seed=seed)
        super().__init__(source, preprocess, PLAIN, batch_size, workers, "scattered-digits")
