"""Files whose values Pillow cannot hold: colour PNG of 16 bits, and TIFF of anything but 8 bits in up to 4 channels."""

import io

import numpy as np
from PIL import Image

from longvision.data.io.decoding import DECODE_ERRORS, decoding
from longvision.data.io.deep import DeepImage
from longvision.data.io.limits import check_pixels, without_pillows_limit
from longvision.data.io.orientation import orientation_of
from longvision.data.io.tiff import MAGIC, read_tiff
from longvision.errors import UnreadableImage

PNG = b"\x89PNG\r\n\x1a\n"
BITS, SAMPLES, FORMAT = 258, 277, 339  # tags of TIFF
TURNED = {
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a),
}  # fmt: skip


def read_deep(content: bytes, channels: int, name: str) -> DeepImage | None:
    """The upright image of such a file, all its channels; None for another file, which Pillow reads.

    Raises UnreadableImage for a damaged one, and for a compression that needs the package imagecodecs.
    """
    if is_deep_png(content):
        return _read_png(content, name)
    if content[:4] in MAGIC and (channels not in (1, 3) or is_deep_tiff(content)):
        with decoding(name):
            values_HWC, has_alpha, orientation = read_tiff(content, channels, name)
        return DeepImage(np.ascontiguousarray(turned(values_HWC, orientation)), name, has_alpha)
    return None


def turned(values_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """Upright, as Pillow's images are turned."""
    return TURNED[orientation](values_HWC) if orientation in TURNED else values_HWC


def is_deep_png(content: bytes) -> bool:
    """More than one channel of 16 bits: Pillow keeps the upper 8."""
    return content[:8] == PNG and content[24:25] == b"\x10" and content[25:26] in (b"\2", b"\4", b"\6")


def is_deep_tiff(content: bytes) -> bool:
    """Also what Pillow does not know, or of which it would read the first channel alone."""
    try:
        with without_pillows_limit(), Image.open(io.BytesIO(content)) as image:
            tags = getattr(image, "tag_v2", {})
    except DECODE_ERRORS:
        return True
    bits, formats = np.ravel(tags.get(BITS, 1)), np.ravel(tags.get(FORMAT, 1))
    return bool(bits.max() > 8 or (formats != 1).any() or tags.get(SAMPLES, 1) > 4)


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
    return DeepImage(np.ascontiguousarray(turned(values_HWC, orientation)), name, values_HWC.shape[2] in (2, 4))
