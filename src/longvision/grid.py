"""How many patches an image has: plain numbers, so that a size that does not divide is told before torch is loaded."""

import re

from longvision.errors import UserError

EFFICIENTVIT_STEM = 16  # pixels a side that its four convolutions of stride 2 make one cell of


def check_stem(name: str, height: int, width: int) -> None:
    """Raises UserError for an image below one cell of EfficientViT's first map, by whose sides it divides."""
    if re.match(r"efficientvit_m\d", name) and min(height, width) < EFFICIENTVIT_STEM:
        raise UserError(
            f"image {height}x{width} is smaller than a cell of {name}'s first map, {EFFICIENTVIT_STEM} pixels: "
            f"take at least {EFFICIENTVIT_STEM} pixels a side; any other size works"
        )


def grid_size(
    height: int,
    width: int,
    patch: int,
    stride: int,
    pad: bool = False,
    to_pad: str = "pad=True when the model is created",
) -> tuple[int, int]:
    """Rows and columns of patches. Raises UserError for a size that does not divide and is not padded, which says what
    `to_pad`, if anything."""

    def nearest(side: int, up: bool) -> int:
        missing = missing_pixels(side, patch, stride)
        return side + missing if up or not missing else max(patch, side + missing - stride)

    if not pad and (missing_pixels(height, patch, stride) or missing_pixels(width, patch, stride)):
        low, high = (f"{nearest(height, up)}x{nearest(width, up)}" for up in (False, True))
        raise UserError(
            f"image {height}x{width} does not divide into patches of {patch} at stride {stride}: "
            f"resize to {f'{low} or {high}' if low != high else low}{f', or pass {to_pad}' if to_pad else ''}"
        )
    rows, columns = ((side + missing_pixels(side, patch, stride) - patch) // stride + 1 for side in (height, width))
    return rows, columns


def missing_pixels(side: int, patch: int, stride: int) -> int:
    """Pixels up to the next size that divides."""
    return max(patch - side, (patch - side) % stride)
