"""Colours of classes, for masks and boxes."""

from longvision.types import Colour


def spread_colours(count: int) -> list[Colour]:
    """Colours for `count` classes, as far apart as their number allows, none of them black or white."""
    import colorsys

    golden = 0.618034  # of a turn: neighbours in number are far apart in hue
    hues = [(0.02 + golden * i) % 1 for i in range(count)]
    shades = [((0.85, 0.9), (0.55, 0.75), (0.95, 0.6))[i // 8 % 3] for i in range(count)]
    colours = [colorsys.hsv_to_rgb(hue, *shade) for hue, shade in zip(hues, shades, strict=True)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]
