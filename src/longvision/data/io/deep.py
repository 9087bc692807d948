"""Images of more than 8 bits a value, of signed numbers and floats, and of other than 1 or 3 channels."""

import warnings
from typing import Literal

import numpy as np
from PIL import Image

from longvision.errors import UnreadableImage

Range = tuple[float, float] | Literal["dtype", "image"]  # of an image's values: what becomes 0, and what becomes 1

MISFIT = 0.5  # this share of an image above white
NO_CONTENT = 0.99  # or that beyond either end is told
LUMA = (0.299, 0.587, 0.114)


class DeepImage:
    """Values as a file has them, (H, W, C). It is cut and resized as Pillow's images are.

    Args:
        values_HWC: integers or floats.
        name: what an error calls it.
        has_alpha: whether the last channel says how opaque a pixel is.
    """

    def __init__(self, values_HWC: np.ndarray, name: str = "an image", has_alpha: bool = False) -> None:
        self.values_HWC, self.name, self.has_alpha = values_HWC, name, has_alpha

    @property
    def height(self) -> int:
        return self.values_HWC.shape[0]

    @property
    def width(self) -> int:
        return self.values_HWC.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as Pillow has them."""
        return self.width, self.height

    @property
    def channels(self) -> int:
        return self.values_HWC.shape[2]

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        """(H, W, C); (H, W) of a single channel."""
        values = self.values_HWC[:, :, 0] if self.channels == 1 else self.values_HWC
        return np.asarray(values, dtype=dtype)  # type: ignore[call-overload]

    def crop(self, box: tuple[int, int, int, int]) -> "DeepImage":
        """A part inside the image: left, top, right and bottom."""
        left, top, right, bottom = box
        return DeepImage(self.values_HWC[top:bottom, left:right], self.name)

    def resize(
        self, size: tuple[int, int], resampling: Image.Resampling, box: tuple[float, float, float, float] | None = None
    ) -> "DeepImage":
        """To (width, height), of the whole or of a box, as Pillow resizes floats: float32 (h, w, C)."""
        parts = [Image.fromarray(self.values_HWC[:, :, c].astype(np.float32)) for c in range(self.channels)]
        return DeepImage(np.stack([np.asarray(part.resize(size, resampling, box)) for part in parts], 2), self.name)

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
            values = np.repeat(values, 3, 2)
        elif values.shape[2] == 3 and channels == 1:
            values = (values.astype(np.float64) @ np.array(LUMA))[:, :, None].astype(_float_of(values.dtype))
        if values.shape[2] != channels:
            raise UnreadableImage(
                f"{self.name} has {values.shape[2]} channels, expected {channels}: data.channels says how many are read"
            )
        return DeepImage(values, self.name)

    def scaled(self, range: Range | None) -> "DeepImage":
        """float32 from 0 to 1; what lies beyond the range, or is no number, becomes the nearer end, or 0.

        Args:
            range: what becomes 0 and 1, where values that do not fit it are told; "image": this image's own lowest and
                highest value; "dtype": what its type holds, 0 and 1 for floats. None as "dtype", which is told for
                uint16, but UnreadableImage for other integers and for floats beyond 0 and 1, whose meaning nobody said.
                Bytes are always on 0 to 255.
        """
        values = self.values_HWC
        low, high = self._ends(range)
        if values.dtype.itemsize > 2 and values.dtype != np.float32:
            values = values.astype(np.float64)
        values = np.nan_to_num(values.astype(_float_of(values.dtype)), nan=low, posinf=high, neginf=low)
        return DeepImage(((values - low) / (high - low)).clip(0, 1).astype(np.float32), self.name)

    def _ends(self, range: Range | None) -> tuple[float, float]:
        dtype = self.values_HWC.dtype
        if dtype == np.uint8:
            return 0.0, 255.0
        if isinstance(range, tuple):
            self._tell_misfit(*range)
            return range
        if range == "image" or (range is None and dtype != np.uint16):
            finite = self.values_HWC[np.isfinite(self.values_HWC)]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
            if range == "image":
                return low, high if high > low else low + 1
            if np.issubdtype(dtype, np.integer) or low < 0 or high > 1:
                kind = dtype if np.issubdtype(dtype, np.integer) else "floats"
                raise UnreadableImage(
                    f"{self.name} holds {kind} from {low:.5g} to {high:.5g}: data.range says what is black and white"
                )
        if np.issubdtype(dtype, np.integer):
            low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
            if range is None:  # once: Python leaves out what it has said
                warnings.warn(
                    f"images of {dtype} values are read from {low:.0f} to {high:.0f}, as no training image seen had "
                    "more than 8 bits: data.range of a training says it otherwise",
                    stacklevel=2,
                )
            return low, high
        return 0.0, 1.0

    def _tell_misfit(self, low: float, high: float) -> None:
        """Once: values that tell of another depth than that of training. Few of those lie above their white; below
        black may lie all the air of a tomogram."""
        values = self.values_HWC
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

    def shown(self) -> Image.Image:
        """To look at, of values from 0 to 1: "RGB" of the first three channels, or "L" where there are fewer."""
        bytes_HWC = (self.values_HWC * 255).round().astype(np.uint8)
        return Image.fromarray(np.ascontiguousarray(bytes_HWC[:, :, :3] if self.channels >= 3 else bytes_HWC[:, :, 0]))


AnyImage = Image.Image | DeepImage


def _float_of(dtype: np.dtype) -> type:
    """The floats that hold all its values."""
    return np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64
