"""Attention over an image: what is attended to in its colours under a glow, the rest grey."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from longvision.types import Colour
from longvision.viz.sheets import WHITE, contact_sheet, short, side_by_side, viewable

# From nothing to the highest value, matplotlib's "inferno" at quarters.
GLOW = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float32)
SHARE = 0.7  # of the glow in a pixel
PANEL = 640  # longer side, pixels


@dataclass(frozen=True)
class Marked:
    """A box, x1, y1, x2, y2 in the image's pixels, and its colour."""

    box: tuple[float, ...]
    colour: Colour


def draw_attention(
    image: Image.Image,
    maps: Mapping[str, np.ndarray],
    cell: tuple[float, float],
    path: Path,
    title: str,
    marks: Sequence[Marked] = (),
    point: tuple[float, float] | None = None,
) -> None:
    """The image, and beside it under each map.

    Args:
        maps: by their titles, not negative (h, w); each is scaled to its own highest value.
        cell: height and width of a cell of the maps, in the image's pixels.
        marks: a box in each map, where there are any.
        point: x, y that is marked in all.
    """
    shown = viewable(image, PANEL)
    scale = shown.width / image.width
    plain = shown.copy()
    panels = [plain]
    for mark in marks:
        _draw_box(plain, mark, scale)
    for number, map_hw in enumerate(maps.values()):
        glowing = glow(shown, map_hw, (cell[0] * shown.height / image.height, cell[1] * scale))
        if marks:
            _draw_box(glowing, marks[number], scale)
        panels.append(glowing)
    if point is not None:
        for panel in panels:
            _draw_point(panel, (point[0] * scale, point[1] * shown.height / image.height))
    names = [f"the image, {image.width}x{image.height}", *(name or "attention" for name in maps)]
    sheet = contact_sheet([side_by_side({short(name): panel}, []) for name, panel in zip(names, panels)], title)
    sheet.save(path)


def glow(image: Image.Image, map_hw: np.ndarray, cell: tuple[float, float]) -> Image.Image:
    """An image under a map whose cells have that height and width in its pixels; those that stand out are cut."""
    heat = Image.fromarray((map_hw / max(float(map_hw.max()), 1e-12)).astype(np.float32))
    inside = (0.0, 0.0, min(image.width / cell[1], heat.width), min(image.height / cell[0], heat.height))
    heat_HW = np.asarray(heat.resize(image.size, Image.Resampling.BILINEAR, box=inside)).clip(0, 1)
    colours = [np.interp(heat_HW, np.linspace(0, 1, len(GLOW)), GLOW[:, channel]) for channel in range(3)]
    grey_HW1 = np.asarray(image.convert("L"), np.float32)[..., None]
    mixed = SHARE * np.stack(colours, -1) + (1 - SHARE) * grey_HW1
    return Image.fromarray(mixed.round().astype(np.uint8))


def _draw_box(panel: Image.Image, mark: Marked, scale: float) -> None:
    draw = ImageDraw.Draw(panel)
    box = [round(min(value * scale, side - 1)) for value, side in zip(mark.box, panel.size * 2, strict=True)]
    draw.rectangle(box, outline=WHITE, width=4)
    draw.rectangle(box, outline=mark.colour, width=2)


def _draw_point(panel: Image.Image, at: tuple[float, float]) -> None:
    draw, (x, y) = ImageDraw.Draw(panel), at
    for radius, colour in ((7, (0, 0, 0)), (5, WHITE), (3, (0, 160, 255))):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
