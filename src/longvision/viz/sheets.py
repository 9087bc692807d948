"""Panels side by side over a legend, and many on one sheet: the layout of what is drawn with Pillow."""

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from longvision.text import one_line, printable
from longvision.types import Colour

SMALLEST = 320  # side of a panel that a small image is enlarged to, pixels
LARGEST = 1024  # side of a panel that a large image is shrunk to
LARGEST_SHEET, GAP = 4000, 16
MOST_LINES = 24  # of a legend
LONGEST_NAME = 40  # letters
WHITE, INK, FRAME = (255, 255, 255), (30, 30, 30), (170, 170, 170)

Line = tuple[Colour | None, str]  # of a legend: its swatch, its text


def side_by_side(panels: Mapping[str, Image.Image], legend: Sequence[Line]) -> Image.Image:
    """Panels with their titles side by side, wide ones below each other, over a legend."""
    width, height = next(iter(panels.values())).size
    columns = 1 if width > 2 * height else len(panels)
    font = font_of(columns * width / 70)
    line = gap = line_height(font)
    titles = list(map(printable, panels))
    cell = max(width, *(round(font.getlength(title)) for title in titles)) + gap
    key = _drawn_legend(legend, columns * cell - gap, font)
    rows = -(-len(panels) // columns)
    below = gap // 2 + rows * (line + height + gap)
    sheet = Image.new("RGB", (max(columns * cell, key.width + gap) + gap, below + key.height + gap // 2), WHITE)
    draw = ImageDraw.Draw(sheet)
    for number, (title, panel) in enumerate(zip(titles, panels.values(), strict=True)):
        left = gap + number % columns * cell
        top = gap // 2 + number // columns * (line + height + gap)
        draw.text((left, top), title, INK, font)
        draw.rectangle((left - 1, top + line - 1, left + width, top + line + height), outline=FRAME)
        sheet.paste(panel, (left, top + line))
    sheet.paste(key, (gap, below))
    return sheet


def contact_sheet(panels: Sequence[Image.Image], title: str) -> Image.Image:
    """The panels in a grid, in the order of reading, shrunk where the sheet would be larger than about 4000 pixels."""
    if not panels:
        raise ValueError(f"no images for the sheet {title!r}: expected at least one")
    columns = max(range(1, len(panels) + 1), key=lambda n: _fit(panels, n))
    shrink, _ = _fit(panels, columns)
    panels = [resized(panel, shrink) for panel in panels]
    column = max(panel.width for panel in panels) + GAP
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    heights = [max(panel.height for panel in row) + GAP for row in rows]
    width = max(columns * column + GAP, SMALLEST)
    font = font_of(width / 50)
    heading, line = _wrapped(title, width - 2 * GAP, font), line_height(font)
    top = 2 * GAP + len(heading) * line
    sheet = Image.new("RGB", (width, top + sum(heights)), WHITE)
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(heading):
        draw.text((GAP, GAP + number * line), text, INK, font)
    for row, height in zip(rows, heights, strict=True):
        for number, panel in enumerate(row):
            sheet.paste(panel, (GAP + number * column, top))
        top += height
    return sheet


def _drawn_legend(lines: Sequence[Line], width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """In as many columns as fit into `width`, wider only where one does not."""
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], (None, f"and {len(lines) - MOST_LINES} more")]
    if not lines:
        return Image.new("RGB", (1, 1), WHITE)
    line = line_height(font)
    indent, side = round(1.3 * line), round(0.7 * line)
    column = indent + round(max(font.getlength(text) for _, text in lines)) + line
    rows = -(-len(lines) // max(1, width // column))
    columns = -(-len(lines) // rows)
    drawn = Image.new("RGB", (columns * column, rows * line), WHITE)
    draw = ImageDraw.Draw(drawn)
    for number, (colour, text) in enumerate(lines):
        left, top = number // rows * column, number % rows * line
        if colour is not None:
            inset = (line - side) // 2
            draw.rectangle((left, top + inset, left + side, top + inset + side), colour, FRAME)
        draw.text((left + indent, top), text, INK, font)
    return drawn


def _fit(panels: Sequence[Image.Image], columns: int) -> tuple[float, float]:
    """What a grid has to be shrunk by, and how near it is to four by three: the larger, the better."""
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    width = columns * max(panel.width for panel in panels)
    height = sum(max(panel.height for panel in row) for row in rows)
    across, down = LARGEST_SHEET - GAP * (columns + 1), LARGEST_SHEET - GAP * (len(rows) + 1)
    shrink = max(0.02, min(1.0, across / width, down / height))
    return shrink, -abs(float(np.log(width / height * 3 / 4)))


def resized(image: Image.Image, scale: float) -> Image.Image:
    if scale == 1:
        return image
    size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)


def viewable(image: Image.Image, largest: int = LARGEST) -> Image.Image:
    """In colour, at a size to look at: a large image shrunk, a small one enlarged with its pixels visible."""
    image = image.convert("RGB")
    if max(image.size) > largest:
        return resized(image, largest / max(image.size))
    times = max(1, min(-(-SMALLEST // min(image.size)), largest // max(image.size)))
    return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)


def font_of(size: float) -> ImageFont.FreeTypeFont:
    """Readable, whatever the size asked for."""
    font = _font_file()
    pixels = round(float(np.clip(size, 12, 30)))
    return ImageFont.truetype(font, pixels) if font else ImageFont.load_default(pixels)  # type: ignore[return-value]


@cache
def _font_file() -> str | None:
    """matplotlib's, which has the letters of most alphabets; found without loading it. None where it is not there."""
    found = importlib.util.find_spec("matplotlib")
    folders = [Path(folder) for folder in (found and found.submodule_search_locations) or []]
    fonts = [folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf" for folder in folders]
    return next((str(font) for font in fonts if font.is_file()), None)


def line_height(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics()) + 2


def short(name: str) -> str:
    """A name in one line."""
    name = one_line(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def fitted(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """As many letters as fit."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…" if text else ""


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in one_line(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [fitted(line, width, font) for line in lines]
