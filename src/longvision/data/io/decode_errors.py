"""How decoding fails, whatever Pillow calls it."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import UnidentifiedImageError

from longvision.errors import UnreadableImage, UserError

# What Pillow's decoders let through when the bytes are damaged: they parse headers with struct, slices and
# dict lookups, and not every plugin turns the failure into an OSError.
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, MemoryError, RuntimeError,
    struct.error, zlib.error,
)  # fmt: skip


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn every way in which decoding fails into an UnreadableImage that says which image and why."""
    try:
        yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(
            f"{name} is not an image in a format that Pillow knows: convert it to PNG or JPEG"
        ) from error
    except DECODE_ERRORS as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UnreadableImage(f"{name} cannot be read as an image: {reason}") from error
