"""Files whose values Pillow cannot hold: colour PNG and PPM of 16 bits, and TIFF of anything but 8 bits in up to 4
channels."""

import io

import numpy as np
from PIL import Image

from longvision.data.io.decode_errors import decoding
from longvision.data.io.deep import DeepImage
from longvision.data.io.depth import PNG, is_deep, place_and_white
from longvision.data.io.limits import check_pixels, without_pillows_limit
from longvision.data.io.orientation import orientation_of, upright_array
from longvision.data.io.tiff import MAGIC, read_tiff
from longvision.errors import UnreadableImage


def read_deep(content: bytes, channels: int, name: str) -> DeepImage | None:
    """The upright image of such a file, all its channels; None for another file, which Pillow reads.

    Raises UnreadableImage for a damaged one, and for a compression that needs the package imagecodecs.
    """
    deep = is_deep(io.BytesIO(content))
    if content[:4] in MAGIC and (deep or channels not in (1, 3)):
        with decoding(name):
            values_HWC, has_alpha, orientation = read_tiff(content, channels, name)
        return DeepImage(np.ascontiguousarray(upright_array(values_HWC, orientation)), name, has_alpha)
    if deep:
        return _read_png(content, name) if content[:8] == PNG else DeepImage(_read_ppm(content, name), name)
    return None


def _read_png(content: bytes, name: str) -> DeepImage:
    import torch
    from torchvision.io import ImageReadMode, decode_png

    with decoding(name):
        with without_pillows_limit(), Image.open(io.BytesIO(content)) as image:
            check_pixels(name, *image.size)
            orientation = orientation_of(image)
        values_CHW = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED)
        values_HWC = values_CHW.permute(1, 2, 0).numpy()
    if values_HWC.dtype != np.uint16:
        raise UnreadableImage(f"{name} cannot be read as an image: torchvision gives {values_HWC.dtype}")
    upright_HWC = np.ascontiguousarray(upright_array(values_HWC, orientation))
    return DeepImage(upright_HWC, name, values_HWC.shape[2] in (2, 4))


def _read_ppm(content: bytes, name: str) -> np.ndarray:
    """uint16 (H, W, 3), the file's white at 65535, as Pillow has it of grey ones."""
    with decoding(name):
        with without_pillows_limit(), Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            offset, white = place_and_white(image)
        check_pixels(name, width, height)
        count = 3 * width * height
        if content[:2] == b"P6":
            values = np.frombuffer(content, ">u2", count, offset).astype(np.uint32)
        else:
            lines = content[offset:].splitlines()
            words = b" ".join(line.partition(b"#")[0] for line in lines).split(maxsplit=count)[:count]
            values = np.array(words).astype(np.uint32)
        if values.max(initial=0) > white:
            raise ValueError(f"it has the value {values.max()}, above the {white} that it says is white")
        return ((values * 65535 + white // 2) // white).astype(np.uint16).reshape(height, width, 3)
