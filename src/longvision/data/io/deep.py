"""Images of more than 8 bits a value, of signed numbers and floats, and of other than 1 or 3 channels."""

import math
import warnings
from typing import Literal

import numpy as np
from PIL import Image

from longvision.errors import UnreadableImage

Range = tuple[float, float] | Literal["dtype", "image"]  # of an image's values: what becomes 0, and what becomes 1
Seen = tuple[str, float, float]  # a type of values, the highest, and that which 99 of 100 images reach

MISFIT = 0.5  # this share of an image above white
NO_CONTENT = 0.99  # or that beyond either end is told
FAINT = 0.25  # and an image whose highest value is below this share of that which 99 of 100 training images reach
BITS_12 = 4095  # up to which 16 bits are almost black
REACH = 3  # pixels on each side of one, of the widest filter, Lanczos
LUMA = (0.299, 0.587, 0.114)


class DeepImage:
    """Values as a file has them, (H, W, C). It is cut and resized as Pillow's images are.

    Args:
        values_HWC: integers or floats.
        name: what an error calls it.
        has_alpha: whether the last channel says how opaque a pixel is.
        ends: what is read as 0 and 1; None where values are taken as they are. Only what is asked for is computed: a
            part that is cut before costs no more than itself.
    """

    def __init__(
        self,
        values_HWC: np.ndarray,
        name: str = "an image",
        has_alpha: bool = False,
        ends: tuple[float, float] | None = None,
    ) -> None:
        self._stored_HWC, self.name, self.has_alpha, self._ends = values_HWC, name, has_alpha, ends

    @property
    def values_HWC(self) -> np.ndarray:
        """As the file has them, or float32 from 0 to 1."""
        return self._stored_HWC if self._ends is None else _from_0_to_1(self._stored_HWC, *self._ends)

    @property
    def height(self) -> int:
        return self._stored_HWC.shape[0]

    @property
    def width(self) -> int:
        return self._stored_HWC.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as Pillow has them."""
        return self.width, self.height

    @property
    def channels(self) -> int:
        return self._stored_HWC.shape[2]

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        """(H, W, C); (H, W) of a single channel."""
        values = self.values_HWC
        return np.asarray(values[:, :, 0] if self.channels == 1 else values, dtype=dtype)  # type: ignore[call-overload]

    def crop(self, box: tuple[int, int, int, int]) -> "DeepImage":
        """A part inside the image: left, top, right and bottom."""
        left, top, right, bottom = box
        return DeepImage(self._stored_HWC[top:bottom, left:right], self.name, ends=self._ends)

    def resize(
        self, size: tuple[int, int], resampling: Image.Resampling, box: tuple[float, float, float, float] | None = None
    ) -> "DeepImage":
        """To (width, height), of the whole or of a box, as Pillow resizes floats: float32 (h, w, C)."""
        if box is not None:
            left, top, right, bottom = _with_neighbours(box, size, self.size)
            box = box[0] - left, box[1] - top, box[2] - left, box[3] - top
            return self.crop((left, top, right, bottom))._resized(size, resampling, box)
        return self._resized(size, resampling, None)

    def _resized(
        self, size: tuple[int, int], resampling: Image.Resampling, box: tuple[float, float, float, float] | None
    ) -> "DeepImage":
        resized_hwC = np.empty((size[1], size[0], self.channels), np.float32)
        for channel in range(self.channels):  # one after another: a large image of many is large enough as it is
            plane = Image.fromarray(self._plane(channel)).resize(size, resampling, box)
            resized_hwC[:, :, channel] = np.asarray(plane)
        return DeepImage(resized_hwC, self.name)

    def _plane(self, channel: int) -> np.ndarray:
        """float32 (H, W)."""
        values = self._stored_HWC[:, :, channel]
        return values.astype(np.float32) if self._ends is None else _from_0_to_1(values, *self._ends)

    def in_channels(self, channels: int) -> "DeepImage":
        """Grey for each of three channels, or the luma of three; an alpha that is opaque everywhere is left out.

        Raises UnreadableImage for another number of channels, which nobody can turn into `channels`.
        """
        values = self.values_HWC
        if self.has_alpha and self.channels != channels:
            opaque = np.iinfo(values.dtype).max if np.issubdtype(values.dtype, np.integer) else 1
            if (values[:, :, -1] != opaque).any():
                raise UnreadableImage(
                    f"{self.name} has more than 8 bits and is transparent: make it opaque, or take its alpha for a "
                    f"channel with data.channels {self.channels}"
                )
            values = values[:, :, :-1]
        if values.shape[2] == 1 and channels == 3:
            values = np.broadcast_to(values, (*values.shape[:2], 3))
        elif values.shape[2] == 3 and channels == 1:
            values = (values.astype(np.float64) @ np.array(LUMA))[:, :, None].astype(_float_of(values.dtype))
        if values.shape[2] != channels:
            raise UnreadableImage(
                f"{self.name} has {values.shape[2]} channels, expected {channels} (data.channels of a training)"
            )
        return DeepImage(values, self.name)

    def scaled(self, range: Range | None) -> "DeepImage":
        """The same, float32 from 0 to 1; what lies beyond the range, or is no number, becomes the nearer end, or 0.

        Args:
            range: what becomes 0 and 1; "image": this image's own lowest and highest value; "dtype": what its type
                holds, 0 and 1 for floats. None as "dtype", which is told for uint16, but UnreadableImage for other
                integers and for floats beyond 0 and 1, whose meaning nobody said. Bytes are always on 0 to 255.
        """
        return DeepImage(self._stored_HWC, self.name, ends=self._ends_by(range))

    def _ends_by(self, range: Range | None) -> tuple[float, float]:
        dtype = self._stored_HWC.dtype
        if dtype == np.uint8:
            return 0.0, 255.0
        if isinstance(range, tuple):
            return range
        if range == "image" or (range is None and dtype != np.uint16):
            low, high, _ = finite_ends(self._stored_HWC)
            if range == "image":
                return low, high if high > low else low + 1
            if np.issubdtype(dtype, np.integer) or low < 0 or high > 1:
                kind = dtype if np.issubdtype(dtype, np.integer) else "floats"
                raise UnreadableImage(
                    f"{self.name} holds {kind} from {low:.5g} to {high:.5g}, and no training image seen had more than "
                    "8 bits: data.range of a training says what is black and white"
                )
        if np.issubdtype(dtype, np.integer):
            low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
            if range is None:  # once: Python leaves out what it has said
                faint = self._stored_HWC.max(initial=0) <= BITS_12
                words = "; some use 12 bits or fewer, and are almost black" if faint else ""
                warnings.warn(
                    f"images of {dtype} values are read from {low:.0f} to {high:.0f}, as no training image seen had "
                    f"more than 8 bits{words}: data.range of a training says it otherwise",
                    stacklevel=2,
                )
            return low, high
        return 0.0, 1.0

    @property
    def dtype(self) -> str:
        """Of the values as the file has them."""
        return str(self._stored_HWC.dtype)

    def tell_misfit(self, range: Range | None, reached: float = 0.0) -> None:
        """Once: values that tell of another depth than that of training. Few of those lie above their white; below
        black may lie all the air of a tomogram. `reached`: the highest value that almost every training image has."""
        values = self._stored_HWC
        if not isinstance(range, tuple) or values.dtype == np.uint8:
            return
        low, high = range
        above, beyond = (values > high).mean(), ((values > high) | (values < low)).mean()
        if above > MISFIT or beyond > NO_CONTENT:
            warnings.warn(
                f"images of {values.dtype} values lie mostly beyond {low:.7g} to {high:.7g}, black to white there: "
                "all of that becomes black or white; give images of the depth of those of training",
                stacklevel=2,
            )
        if np.issubdtype(values.dtype, np.floating) and high > 4 and values.min() >= 0 and 0 < values.max() <= 1:
            warnings.warn(
                f"images of floats from 0 to 1 are read on {low:.7g} to {high:.7g}, black to white in training: "
                "they are almost black: give values as the training images have them",
                stacklevel=2,
            )
        elif values.max(initial=low) - low < FAINT * (reached - low):
            warnings.warn(
                f"images of {values.dtype} values are far darker than those of training, almost all of which reach "
                f"{reached:.7g}, on {low:.7g} to {high:.7g}: give images of the depth of those of training",
                stacklevel=2,
            )

    def shown(self) -> Image.Image:
        """To look at, of values from 0 to 1: "RGB" of the first three channels, or "L" where there are fewer."""
        planes = [(self._plane(c) * 255).round().astype(np.uint8) for c in range(3 if self.channels >= 3 else 1)]
        return Image.fromarray(np.dstack(planes) if len(planes) == 3 else planes[0])


AnyImage = Image.Image | DeepImage


def finite_ends(values: np.ndarray) -> tuple[float, float, int]:
    """The lowest and the highest finite value, 0 and 1 where there is none, and how many are not finite."""
    if not np.issubdtype(values.dtype, np.floating):
        return float(values.min()), float(values.max()), 0
    finite = np.isfinite(values)
    if not finite.any():
        return 0.0, 1.0, values.size
    low, high = values.min(where=finite, initial=np.inf), values.max(where=finite, initial=-np.inf)
    return float(low), float(high), int(values.size - finite.sum())


def _from_0_to_1(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """float32; in place, as images may be large."""
    scaled: np.ndarray = values.astype(_float_of(values.dtype))
    np.nan_to_num(scaled, copy=False, nan=low, posinf=high, neginf=low)
    scaled -= low
    scaled /= high - low
    return scaled.clip(0, 1, out=scaled).astype(np.float32, copy=False)


def _with_neighbours(box: tuple[float, ...], size: tuple[int, int], whole: tuple[int, int]) -> tuple[int, ...]:
    """The whole pixels that resizing a box to `size` looks at."""
    margins = [math.ceil(REACH * max(1, (box[i + 2] - box[i]) / size[i])) + 1 for i in (0, 1)]
    first = [max(0, math.floor(box[i]) - margins[i]) for i in (0, 1)]
    last = [min(whole[i], math.ceil(box[i + 2]) + margins[i]) for i in (0, 1)]
    return *first, *last


def _float_of(dtype: np.dtype) -> type:
    """The floats that hold all its values."""
    return np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64
