"""How many pixels an image may have. Pillow's own limit, against attacks on servers, is far below a scanned slide."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from longvision.errors import UnreadableImage, UserError

VARIABLE = "LONGVISION_MAX_PIXELS"
MOST_PIXELS = 2_000_000_000

_lock = threading.Lock()
_readers = 0
_pillows: int | None = None


@contextmanager
def without_pillows_limit() -> Iterator[None]:
    """Inside, Pillow takes an image of any size without a word; several threads may be inside at once."""
    global _readers, _pillows
    with _lock:
        if _readers == 0:
            _pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                Image.MAX_IMAGE_PIXELS = _pillows


def check_pixels(name: str, width: int, height: int) -> None:
    """Raises UnreadableImage for an image of more pixels than `most_pixels` allows."""
    if width * height > most_pixels():
        raise UnreadableImage(
            f"{name} has {width}x{height} pixels, more than {most_pixels():,} in all: cut it into tiles, or set the "
            f"environment variable {VARIABLE} to {width * height}"
        )


def most_pixels() -> int:
    """What the environment says, or two billion."""
    text = os.environ.get(VARIABLE, str(MOST_PIXELS))
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{VARIABLE} is {text!r}: expected a whole number of pixels, such as {MOST_PIXELS}")
    return int(text)
