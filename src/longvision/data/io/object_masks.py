"""The masks of one image's objects, drawn when they are asked for, and only where."""

from typing import TYPE_CHECKING, Any

import numpy as np

from longvision.data.io.coco_masks import TRIANGLE, drawn, mask_tools, run_lengths
from longvision.types import Size

if TYPE_CHECKING:
    from torch import Tensor

FINE = 5  # COCO draws polygons on a grid of fifths of a pixel
Part = tuple[int, int, np.ndarray]  # top, left, and 0 or 1 (h, w): a mask where it is not empty


class ObjectMasks:
    """N masks of height and width `size`, as COCO segmentations: 150 of them on 12 megapixels are 1.8 GB once drawn."""

    def __init__(self, shapes: list[Any], size: Size) -> None:
        self.shapes, self.size = shapes, size

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.shapes), *self.size)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, rows: Any) -> "ObjectMasks | np.ndarray":
        """The one of a row, bool (H, W); of rows (M,), or where bool (N,) is true, such an object."""
        if isinstance(rows, int):
            return drawn(self.shapes[rows], *self.size).astype(bool)
        kept = np.arange(len(self))[np.asarray(rows)]
        return ObjectMasks([self.shapes[row] for row in kept], self.size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        masks_NHW = np.zeros(self.shape, bool)
        for mask_HW, shape in zip(masks_NHW, self.shapes):
            mask_HW[:] = drawn(shape, *self.size)
        return masks_NHW if dtype is None else masks_NHW.astype(dtype)

    def drawn(self) -> "Tensor":
        """bool (N, H, W)."""
        import torch

        return torch.from_numpy(np.asarray(self))

    def run_lengths(self) -> list[tuple[tuple[int, int], bytes]]:
        """Of each, size and COCO's compressed run lengths; none is drawn."""
        found = [run_lengths(shape, *self.size)["counts"] for shape in self.shapes]
        return [(self.size, counts.encode() if isinstance(counts, str) else counts) for counts in found]

    def to(self, device: Any) -> "ObjectMasks":
        """Itself: there is no tensor."""
        return self

    def pin_memory(self) -> "ObjectMasks":
        """Itself."""
        return self

    def resized_crop(self, top: int, left: int, height: int, width: int, size: list[int]) -> "Tensor":
        """As torchvision's of the drawn masks, 0 or 255: uint8 (N, *size), equal where it resizes bytes as bytes, else
        within 1."""
        import torch

        cut_Nhw = torch.zeros(len(self), *size, dtype=torch.uint8)
        for cut_hw, shape in zip(cut_Nhw, self.shapes):
            part = _within(drawn_part(shape, *self.size), top, left, height, width)
            if part[2].size:
                _put_resized(cut_hw, part, height, width)
        return cut_Nhw


def drawn_part(shape: Any, height: int, width: int) -> Part:
    """A COCO segmentation on an image of that size, where it is not empty; the same pixels as `drawn`."""
    if isinstance(shape, list):
        polygons = [np.trunc(FINE * np.array(one, float) + 0.5) for one in shape if len(one) >= TRIANGLE]
        points = np.concatenate(polygons).reshape(-1, 2)
        left, top = (np.floor(points.min(0) / FINE).astype(int) - 1).tolist()
        right, bottom = (np.ceil(points.max(0) / FINE).astype(int) + 2).tolist()
        if (bottom - top) * (right - left) <= height * width:  # else it reaches far over the edges
            corner = FINE * np.array([left, top])
            moved = [((one.reshape(-1, 2) - corner) / FINE).ravel().tolist() for one in polygons]
            return _within((top, left, drawn(moved, bottom - top, right - left)), 0, 0, height, width)
    elif isinstance(shape["counts"], str | bytes):
        left, top, wide, high = (int(side) for side in mask_tools().toBbox(shape))
        return top, left, drawn(shape, height, width)[top : top + high, left : left + wide]
    return 0, 0, drawn(shape, height, width)


def _within(part: Part, top: int, left: int, height: int, width: int) -> Part:
    """What of it lies in a window; its place there."""
    y, x, mask = part
    above, before = max(top - y, 0), max(left - x, 0)
    mask = mask[above : max(top + height - y, 0), before : max(left + width - x, 0)]
    return y + above - top, x + before - left, mask


def _put_resized(result_hw: "Tensor", part: Part, height: int, width: int) -> None:
    """Columns first, then rows, as a whole mask is resized: the rows, then the columns, that are empty stay out."""
    import torch
    from torchvision.transforms.v2 import functional as F

    top, left, mask = part
    rows = torch.zeros(1, len(mask), width, dtype=torch.uint8)
    rows[0, :, left : left + mask.shape[1]] = torch.from_numpy(255 * mask)
    rows = F.resize(rows, [len(mask), result_hw.shape[1]], antialias=True)
    shown = rows[0].any(0).nonzero().flatten()
    if not len(shown):
        return
    first, last = int(shown[0]), int(shown[-1]) + 1
    columns = torch.zeros(1, height, last - first, dtype=torch.uint8)
    columns[0, top : top + len(mask)] = rows[0, :, first:last]
    result_hw[:, first:last] = F.resize(columns, [result_hw.shape[0], last - first], antialias=True)[0]
