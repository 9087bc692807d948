"""Which way up an image is: the orientation tag of EXIF or XMP, obeyed once."""

from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image

from longvision.data.io.decode_errors import DECODE_ERRORS

IMAGE_WIDTH, IMAGE_LENGTH = 256, 257  # tags of TIFF
SIDEWAYS = (5, 6, 7, 8)  # the EXIF orientations of an image lying on its side
Turn = tuple[Image.Transpose, Callable[[np.ndarray], np.ndarray]]
TURNS: dict[int, Turn] = {  # what makes an image, or an array (H, W, C), of each EXIF orientation upright
    2: (Image.Transpose.FLIP_LEFT_RIGHT, lambda a: a[:, ::-1]),
    3: (Image.Transpose.ROTATE_180, lambda a: a[::-1, ::-1]),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, lambda a: a[::-1]),
    5: (Image.Transpose.TRANSPOSE, lambda a: a.swapaxes(0, 1)),
    6: (Image.Transpose.ROTATE_270, lambda a: np.rot90(a, -1)),
    7: (Image.Transpose.TRANSVERSE, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
    8: (Image.Transpose.ROTATE_90, lambda a: np.rot90(a)),
}


def upright(image: Image.Image) -> Image.Image:
    """Turn a loaded image as its orientation tag says, if that was not done: some versions of Pillow turn a TIFF when
    they load it, and take the tag away."""
    turn = TURNS.get(orientation_of(image))
    return image if turn is None else image.transpose(turn[0])


def upright_array(values_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """Values as a file has them, turned as its tag says."""
    return TURNS[orientation][1](values_HWC) if orientation in TURNS else values_HWC


def orientation_of(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODE_ERRORS:  # a damaged EXIF block turns nothing
        return 1
    return found if found in range(1, 9) else 1


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in the file. Some versions of Pillow call a TIFF's size the one to which it will be turned."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(IMAGE_WIDTH, image.width), tags.get(IMAGE_LENGTH, image.height)
