"""Colours of classes, for masks and boxes: chosen, and read as files write them."""

import re

from longvision.types import Colour


def spread_colours(count: int) -> list[Colour]:
    """Colours for `count` classes, as far apart as their number allows, none of them black or white."""
    import colorsys

    golden = 0.618034  # of a turn: neighbours in number are far apart in hue
    hues = [(0.02 + golden * i) % 1 for i in range(count)]
    shades = [((0.85, 0.9), (0.55, 0.75), (0.95, 0.6))[i // 8 % 3] for i in range(count)]
    colours = [colorsys.hsv_to_rgb(hue, *shade) for hue, shade in zip(hues, shades, strict=True)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]


NUMBERS = re.compile(r"(?:rgba?\s*)?[\[(]?\s*(\d+)[\s,;]+(\d+)[\s,;]+(\d+)(?:[\s,;]+[\d.]+)?\s*[\])]?", re.IGNORECASE)
HEX = re.compile(r"#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})|#([0-9a-f])([0-9a-f])([0-9a-f])", re.IGNORECASE)


def read_colour(text: str) -> Colour | None:
    """ "128 64 128", "128,64,128", "rgb(128, 64, 128)", with an opacity as a fourth number or without, "#804080" or
    "#848" -> red, green, blue. None for anything else; also for eight digits, of which nobody says where the opacity
    is."""
    text = text.strip()
    if found := HEX.fullmatch(text):
        red, green, blue = (int(digits * (2 if len(digits) == 1 else 1), 16) for digits in found.groups() if digits)
        return red, green, blue
    if found := NUMBERS.fullmatch(text):
        red, green, blue = map(int, found.groups())
        return (red, green, blue) if max(red, green, blue) <= 255 else None
    return None


def colour_of_int(number: int) -> Colour | None:
    """A colour packed into 32 bits with its opacity first, signed or not, as QuPath writes it."""
    if not -(1 << 31) <= number < 1 << 32:
        return None
    return number >> 16 & 255, number >> 8 & 255, number & 255
