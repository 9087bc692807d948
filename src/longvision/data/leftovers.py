"""What lies beside the images that are used, told in one line."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from longvision.data.io.listing import ARCHIVE_ENDINGS, count_images, ending, has_image_name, list_files
from longvision.data.problems import counted, listing

OF_EVERY_SET = re.compile(r"(?i)(readme|licen[cs]e|copying|citation|changelog)\b.*")


def unused(where: Path, files: Sequence[str] = (), folders: Iterable[str] = ()) -> list[str]:
    """The line, or none: names of files and folders in `where` that are not used, with how many images they are."""
    files = [name for name in files if not OF_EVERY_SET.fullmatch(name)]
    images = [name for name in files if has_image_name(name)]
    archives = [name for name in files if ending(name) in ARCHIVE_ENDINGS]
    others = [name for name in files if name not in {*images, *archives}]
    parts = [f"the folder {name} ({_held(where / name)})" for name in folders]
    parts += [
        f"{counted(len(names), what)} ({listing(names)})"
        for names, what in ((images, "image"), (archives, "archive"), (others, "other file"))
        if names
    ]
    return [f"not used in {where}: {', '.join(parts)}"] if parts else []


def unlisted(folder: Path, used: Iterable[str], labels: Path) -> list[str]:
    """The line, or none, for images in a folder that a file of labels does not list."""
    known = set(map(os.path.normpath, used))
    images = [file for file in list_files(folder).files if has_image_name(file)]
    names = [os.path.relpath(file, folder) for file in images if os.path.normpath(file) not in known]
    if not names:
        return []
    return [f"{counted(len(names), 'image')} in {folder} that {labels} does not list ({listing(names)}): not used"]


def no_images(names: Sequence[str], where: Path) -> list[str]:
    """The line, or none, for files of no image type among those that are used."""
    if not names:
        return []
    return [f"{counted(len(names), 'file')} of no image type in {where} ({listing(names)}): not used"]


def cannot_be_listed(problems: Sequence[str]) -> list[str]:
    """The line, or none, for what `list_files` could not list."""
    return [f"not used: {listing(problems, '; ')}"] if problems else []


def _held(folder: Path) -> str:
    files = list_files(folder).files
    images = count_images(files)
    return counted(images, "image") if images or not files else counted(len(files), "file")
