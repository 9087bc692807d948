"""What rooms hand to each other. On the bottom floor: loads no library, so that data can be listed before torch is."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Array = Tensor | np.ndarray

Split = Literal["train", "val", "test"]
Size = tuple[int, int]  # height, width
Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
IGNORE = 255  # the value of a mask's pixels that do not count


class _PerObject:
    """A dataclass whose arrays have one row per object."""

    def __len__(self) -> int:
        return len(self.boxes)  # type: ignore[attr-defined]

    def _arrays(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if hasattr(value, "shape")}

    def select(self, keep_N: Any) -> Self:
        """Some of the objects only: those where bool (N,) is True, or those with these row numbers."""
        return replace(self, **{name: value[keep_N] for name, value in self._arrays().items()})  # type: ignore[type-var]

    def to(self, device: Any) -> Self:
        """The same with its tensors on a device."""
        return replace(self, **{name: value.to(device) for name, value in self._arrays().items()})  # type: ignore[type-var]

    def numpy(self) -> Self:
        """The same with NumPy arrays."""
        arrays = {name: value.detach().cpu().numpy() for name, value in self._arrays().items() if hasattr(value, "cpu")}
        return replace(self, **arrays)  # type: ignore[type-var]


@dataclass(frozen=True)
class Target(_PerObject):
    """The objects that are in one image; N may be 0.

    Args:
        boxes: float32 (N, 4), x1, y1, x2, y2 in pixels.
        labels: int64 (N,), class numbers from 0.
        iscrowd: bool (N,): neither trained on, nor counted when it is missed.
        masks: bool (N, H, W); None where the source has none.
        image_id: the image's number in its source.
        size: height and width of the image to whose pixels boxes and masks refer; None for the image beside it.
    """

    boxes: Array
    labels: Array
    iscrowd: Array
    masks: Array | None = None
    image_id: int = 0
    size: Size | None = None


@dataclass(frozen=True)
class Detections(_PerObject):
    """The objects that a model found in one image, in the image's own pixels; N may be 0.

    Args:
        boxes: float32 (N, 4), x1, y1, x2, y2 in pixels.
        scores: float32 (N,), from 0 to 1.
        labels: int64 (N,), class numbers from 0.
        masks: bool (N, H, W); None from a model that finds boxes alone.
    """

    boxes: Array
    scores: Array
    labels: Array
    masks: Array | None = None


@dataclass(frozen=True)
class DataInfo:
    """What a model must know of its data.

    Args:
        name: of the set, for messages and titles.
        classes: their names.
        size: height and width of the training images, pixels.
        channels: 1 for grey, 3 for colour.
        has_masks: whether objects have masks.
        palette: a colour for each class, where pixels or objects are drawn.
    """

    name: str
    classes: list[str]
    size: Size
    channels: int = 3
    has_masks: bool = False
    palette: list[Colour] | None = None
