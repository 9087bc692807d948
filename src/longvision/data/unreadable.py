"""Reads images and labels only to see whether they can be."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from longvision.data.io.threads import each_in_threads
from longvision.data.sources.base import ImageSet
from longvision.errors import MissingFileError, UnreadableImage


def unreadable_images(
    images: ImageSet[Any], rows: Sequence[int], progress: Callable[[Iterable[Any]], Iterable[Any]] = iter
) -> list[str]:
    """Decode the images with these numbers as training does, several at once; -> why those fail that cannot be read.

    Args:
        images: one split.
        rows: their numbers.
        progress: goes through them and may say how far it is.

    Raises:
        UserError: images that do not fit their labels.
    """
    return [reason for reason in progress(each_in_threads(partial(_reason, images), rows)) if reason is not None]


def _reason(images: ImageSet[Any], row: int) -> str | None:
    try:
        images[row]
    except (UnreadableImage, MissingFileError) as error:
        return str(error)
    return None
