"""Images of more than 8 bits and of many channels, as files."""

import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image

RAMP = np.linspace(0, 1, 64 * 48).reshape(64, 48)


def png16(values_HWC):
    height, width, samples = values_HWC.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[samples]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    chunks = [
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in [*parts, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def ppm(head, values_HWC):
    return head + values_HWC.astype(">u2").tobytes()


def by_pillow(values, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def tiff_of_12_bits(values):
    """Two in three bytes, as microscopes write them."""
    height, width = values.shape
    bits = np.unpackbits(values.astype(">u2")[:, :, None].view(np.uint8), axis=2)[:, :, 4:]
    rows = np.packbits(bits.reshape(height, -1), axis=1).tobytes()
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(rows)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag > 270 else 3, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + rows


def many(dtype, bands=5):
    values = np.random.default_rng(0).normal(0, 100, (64, 48, bands))
    return np.abs(values).astype(dtype) if np.issubdtype(dtype, np.unsignedinteger) else values.astype(dtype)


U12, U16 = (RAMP * 4095).astype(np.uint16), (RAMP * 65535).astype(np.uint16)
I16 = (RAMP * 4000 - 1000).astype(np.int16)
RGB16 = np.stack([U16, U16[::-1], U12], 2)
FLOATS = (RAMP * 450 - 50).astype(np.float32)
