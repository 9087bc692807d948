"""scikit-learn's handwritten digits in images of every size and proportion, as photographs have them, without a
download."""

from functools import partial
from hashlib import blake2b

import numpy as np
from PIL import Image

from longvision.data.io.deep import AnyImage
from longvision.data.io.images import Channels, as_channels
from longvision.data.sources.base import ImageSet
from longvision.data.sources.digits import DigitsSource, load_digits_split
from longvision.types import Split

SHORT = (12, 36)  # pixels of the shorter side
LONGEST = 2.5  # times that, the longer one


class MixedDigitsSource(DigitsSource):
    """The digits of `DigitsSource`, split as they are there; each fills the height or the width of an image of its own,
    somewhere along the other. Size, proportions and place follow from the scan."""

    name = "mixed digits"

    def split(self, split: Split) -> ImageSet[int]:
        return ImageSet(list(zip(*load_digits_split(split), strict=True)), partial(_read, channels=self.channels))


def _read(scan: tuple[np.ndarray, int], channels: Channels) -> tuple[AnyImage, int]:
    pixels_HW, label = scan
    seed = int.from_bytes(blake2b(pixels_HW.tobytes(), digest_size=8).digest(), "big")
    draw = np.random.default_rng(seed)
    side = int(draw.integers(SHORT[0], SHORT[1] + 1))
    beyond = int(side * (LONGEST ** draw.random() - 1))
    place = int(draw.integers(beyond + 1))
    is_wide = bool(draw.integers(2))
    image = Image.new("L", (side + beyond, side) if is_wide else (side, side + beyond))
    digit = Image.fromarray(pixels_HW).resize((side, side), Image.Resampling.BICUBIC)
    image.paste(digit, (place, 0) if is_wide else (0, place))
    return as_channels(image, channels), int(label)
