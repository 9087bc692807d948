"""What an image file says of itself before a pixel is decoded."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from longvision.data.io.decode_errors import DECODE_ERRORS
from longvision.data.io.limits import without_pillows_limit
from longvision.data.io.orientation import SIDEWAYS, orientation_of, stored_size
from longvision.data.io.tiff import ALIEN, first_bytes, tiff_size
from longvision.data.problems import listing
from longvision.types import Size


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before a pixel is decoded.

    Args:
        size: height and width as `read_image` turns it.
        orientation: how it is to be turned, 1 to 8 as in EXIF; 1 is upright.
    """

    size: Size
    orientation: int = 1

    @property
    def stored(self) -> Size:
        """Height and width before it is turned."""
        height, width = self.size
        return (width, height) if self.orientation in SIDEWAYS else self.size

    @property
    def turned_unseen(self) -> bool:
        """Whether it is turned, and its size does not say so: labels drawn before that would seem to fit."""
        return self.orientation != 1 and self.stored == self.size


def read_header(path: str | Path | bytes | IO[bytes]) -> Header | None:
    """Of a file, of its content or of one that is open. None for what does not begin as an image."""
    try:
        if isinstance(path, str | Path) and first_bytes(path) == ALIEN:
            raise UnidentifiedImageError
        with without_pillows_limit(), Image.open(BytesIO(path) if isinstance(path, bytes) else path) as image:
            orientation = orientation_of(image)
            width, height = stored_size(image)
    except DECODE_ERRORS:
        found = tiff_size(path) if isinstance(path, str | Path) else None
        if found is None:
            return None
        (height, width), orientation = found
    return Header((width, height) if orientation in SIDEWAYS else (height, width), orientation)


def upright_size(path: str | Path) -> Size | None:
    """Height and width of an image as `read_image` turns it; None for what does not begin as an image."""
    header = read_header(path)
    return None if header is None else header.size


def unturned_hint(path: str | Path, size: Size) -> str:
    """Why labels of that height and width do not fit an image, where it is that they were drawn before its orientation
    tag turned it, and what to do; else nothing."""
    header = read_header(path)
    if header is None or header.size == size or header.stored != size:
        return ""
    return (
        f"; that is its size before its orientation tag ({header.orientation}) turns it: "
        "turn the labels too, or take the tag away if the image is upright without it (exiftool -Orientation= FILE)"
    )


def turned_unseen_note(where: str, files: list[str]) -> str:
    return (
        f"{where}: an orientation tag turns or mirrors {len(files)} of the images without changing their size "
        f"({listing(sorted(files))}): labels are taken to lie on the upright image; look at some with check-data"
    )
