"""Small images of every format that Pillow writes here, and bytes of them changed at random."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, features

SIDE = 12
FORMATS = {
    "PNG": {}, "JPEG": {}, "GIF": {}, "BMP": {}, "PPM": {}, "TGA": {}, "ICO": {}, "PCX": {}, "SGI": {}, "IM": {},
    "DIB": {}, "DDS": {}, "QOI": {}, "ICNS": {}, "TIFF": {}, "MPO": {}, "WEBP": {"lossless": True}, "SPIDER": {},
    "MSP": {}, "XBM": {}, "JPEG2000": {}, "BLP": {}, "AVIF": {},
}  # fmt: skip
MODES = {"MSP": "1", "XBM": "1", "SPIDER": "F", "BLP": "P"}
COSTLY = ("AVIF", "ICNS", "JPEG2000")  # slow decoders


def seeds() -> dict[str, bytes]:
    """One small file a kind; what this Pillow cannot write is left out."""
    Image.init()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    found = {}
    for kind, options in FORMATS.items():
        if kind not in Image.SAVE or (kind == "AVIF" and not features.check("avif")):
            continue
        found[kind.lower()] = _saved(picture.convert(MODES.get(kind, "RGB")), kind, options)
    exif = Image.Exif()
    exif[274] = 6
    grey = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 400
    more = {
        "png-exif": (picture, "PNG", {"exif": exif}),
        "jpeg-exif": (picture, "JPEG", {"exif": exif}),
        "png-palette": (picture.convert("P"), "PNG", {"transparency": 3}),
        "png-16": (Image.fromarray(grey), "PNG", {}),
        "pgm-16": (Image.fromarray(grey), "PPM", {}),
        "tiff-16": (Image.fromarray(grey), "TIFF", {}),
        "tiff-float": (Image.fromarray(grey.astype(np.float32)), "TIFF", {}),
        "tiff-lzw": (picture, "TIFF", {"compression": "tiff_lzw", "tiffinfo": {274: 6}}),
        "jpeg-cmyk": (picture.convert("CMYK"), "JPEG", {}),
        "gif-pages": (picture, "GIF", {"save_all": True, "append_images": [picture.rotate(90)]}),
    }
    return found | {name: _saved(*one) for name, one in more.items()}


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """Some bytes changed, most of them of the header; cut short, doubled or with a gap."""
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        place = int(random.integers(len(changed) if random.random() < 0.4 else min(len(changed), 100)))
        changed[place] = int(random.choice((0, 1, 255, 127, 128, int(random.integers(256)))))
    what, cut = random.random(), int(random.integers(1, len(changed)))
    if what < 0.1:
        del changed[cut:]
    elif what < 0.15:
        changed[cut:cut] = changed[:cut]
    elif what < 0.2:
        del changed[cut : cut + int(random.integers(1, 20))]
    return bytes(changed)


def mutations(count: int, seed: int, kinds: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """`count` of them, kind by kind in turn."""
    random, names = np.random.default_rng(seed), list(kinds)
    for number in range(count):
        name = names[number % len(names)]
        yield name, mutated(kinds[name], random)


def _saved(image: Image.Image, kind: str, options: dict) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
