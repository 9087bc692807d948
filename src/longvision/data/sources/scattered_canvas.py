"""What scattered digits lie on and how they are painted: texture, clutter, noise, and grids enlarged to any size.

All arithmetic is on integers or, value by value, on float64: the same bytes on every machine.
"""

import numpy as np

TEXTURE = ((96, 45), (20, 16), (6, 8))  # cells of so many pixels, grey levels up or down
BAND = 64  # rows worked on at a time, so that a canvas of 4096x4096 needs no float64 copy
BIN = 16  # grey levels
NEAR = 3  # bins to either side in which a digit's grey would be lost


def usual_digits(height: int, width: int) -> tuple[int, int]:
    """Least and most digits on a canvas: 4 to 10 on 128x128, 12 to 30 on 256x256, 120 to 300 on the largest."""
    share = height * width / 256**2
    return min(120, max(4, round(12 * share))), min(300, max(10, round(30 * share)))


def sharpened(ink_hw: np.ndarray) -> np.ndarray:
    """Ink of a scan, smeared by the enlargement, -> strokes with narrow edges; 0.5 where the ink is 0.4."""
    return np.clip((ink_hw - 0.4) * 3 + 0.5, 0, 1)


def enlarged(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) -> (height, width) float64, bilinear between the centres of the pixels."""
    return taller(wider(grid, width), height, 0, height)


def wider(grid: np.ndarray, width: int) -> np.ndarray:
    low, high, share = neighbours(grid.shape[1], width, 0, width)
    return grid[:, low] * (1 - share) + grid[:, high] * share


def taller(grid: np.ndarray, height: int, first: int, last: int) -> np.ndarray:
    """Rows `first` to `last` (exclusive) of `grid` enlarged to `height` rows."""
    low, high, share = neighbours(grid.shape[0], height, first, last)
    return grid[low] * (1 - share)[:, None] + grid[high] * share[:, None]


def neighbours(count: int, target: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two of `count` points that each of `target` points lies between, and the share of the second."""
    at = (np.arange(first, last) + 0.5) * (count / target) - 0.5
    at = np.clip(at, 0, count - 1)
    low = at.astype(np.int64)
    return low, np.minimum(low + 1, count - 1), at - low


def texture(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A canvas (H, W) of bytes: light and shade of three grain sizes around a middle grey."""
    base = random.integers(95, 161)
    layers = []
    for cell, strength in TEXTURE:
        grid = random.random((height // cell + 2, width // cell + 2)) * 2 - 1
        layers.append(wider(grid * (strength * random.random()), width))
    canvas_HW = np.empty((height, width), np.uint8)
    for top in range(0, height, BAND):
        bottom = min(height, top + BAND)
        band = taller(layers[0], height, top, bottom)
        for layer in layers[1:]:
            band += taller(layer, height, top, bottom)
        canvas_HW[top:bottom] = np.rint(band + base)  # 95 - 69 and 160 + 69 are bytes
    return canvas_HW


def strew_clutter(random: np.random.Generator, canvas_HW: np.ndarray) -> None:
    """Rectangles, frames, strokes as wide as a digit's, and specks: what a model has to tell from digits."""
    height, width = canvas_HW.shape
    least, most = usual_digits(height, width)
    for kind in random.integers(4, size=random.integers(least, most, endpoint=True)).tolist():
        tall, wide = (int(side) for side in random.integers(4, min(40, height, width) + 1, 2))
        top, left = int(random.integers(height - tall + 1)), int(random.integers(width - wide + 1))
        patch = canvas_HW[top : top + tall, left : left + wide]
        level, thick = int(random.integers(256)), int(random.integers(2, 6))
        if kind == 0:
            patch[:] = (patch.astype(np.int64) + level) // 2
        elif kind == 1:
            middle = patch[thick:-thick, thick:-thick].copy()
            patch[:] = level
            patch[thick:-thick, thick:-thick] = middle
        elif kind == 2:
            patch[stroke(random, tall, wide, thick)] = level
        else:
            count = int(random.integers(3, 13))
            patch[random.integers(tall, size=count), random.integers(wide, size=count)] = level


def stroke(random: np.random.Generator, height: int, width: int, thick: int) -> np.ndarray:
    """bool (H, W): the pixels within half of `thick` of the line between two random points."""
    (y1, y2), (x1, x2) = random.random(2) * (height - 1), random.random(2) * (width - 1)
    dy, dx = y2 - y1, x2 - x1
    y, x = np.arange(height)[:, None] - y1, np.arange(width) - x1
    along = np.clip((y * dy + x * dx) / (dy * dy + dx * dx + 1e-9), 0, 1)
    off_y, off_x = y - along * dy, x - along * dx
    return off_y * off_y + off_x * off_x <= thick * thick / 4


def paint(random: np.random.Generator, canvas_HW: np.ndarray, where: tuple[slice, slice], ink_hw: np.ndarray) -> None:
    """Ink from 0 to 1, in a grey that is rare around it and lighter than the mean there, by 33 levels if it can be."""
    rows, columns = where
    around = canvas_HW[max(0, rows.start - 2) : rows.stop + 2, max(0, columns.start - 2) : columns.stop + 2]
    histogram = np.bincount(around.ravel() // BIN, minlength=256 // BIN)
    sums = np.cumsum(np.pad(histogram, (NEAR + 1, NEAR)))
    darkest = min(len(histogram) - 1, int(around.mean()) // BIN + NEAR)
    order = darkest + random.permutation(len(histogram) - darkest)
    near = (sums[2 * NEAR + 1 :] - sums[: -2 * NEAR - 1])[order]
    free = np.flatnonzero(near * 12 <= around.size)
    bin_number = order[free[0] if len(free) else near.argmin()]
    level = int(bin_number) * BIN + int(random.integers(BIN))
    patch = canvas_HW[rows, columns]
    patch[:] = np.rint(patch * (1 - ink_hw) + level * ink_hw)


def add_noise(random: np.random.Generator, canvas_HW: np.ndarray) -> None:
    """Each pixel up or down by up to 12 grey levels, as drawn for the image."""
    strength = int(random.integers(1, 13))
    for top in range(0, len(canvas_HW), BAND):
        band = canvas_HW[top : top + BAND]
        noise = random.integers(-strength, strength, band.shape, np.int8, endpoint=True)
        band[:] = np.clip(band.astype(np.int16) + noise, 0, 255)
