"""What tells the content of a file from another one's, without reading it whole."""

import hashlib
import os

BLOCK = 16384  # bytes that are read at the beginning, in the middle and at the end of a file


def mark_of(file: str | None, offset: int = 0, size: int | None = None) -> str:
    """The size, and a hash of parts of the content, as no large file is read whole: images of one mark are the same.

    Of an image inside a file, `offset` and `size` say where it is: its mark is that of the same image in its own file.
    """
    if file is None or (size is None and not size_of(file)):
        return ""
    size = int(size_of(file)) if size is None else size
    words = hashlib.blake2b(digest_size=8)
    try:
        with open(file, "rb") as opened:
            for place in sorted({0, size // 2, max(0, size - BLOCK)}):
                opened.seek(offset + place)
                words.update(opened.read(min(BLOCK, size - place)))
    except OSError:  # it is told when it is read
        return ""
    return f"{size}:{words.hexdigest()}"


def size_of(file: str | None) -> str:
    """In bytes; "" of what is not there, or cannot be asked."""
    try:
        return "" if file is None else str(os.path.getsize(file))
    except OSError:
        return ""
