"""What lies in folders: links are followed, never in circles, and one entry that cannot be read costs one entry."""

import os
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from longvision.errors import UserError

# Of operating systems, file servers and archives: hidden on the system that writes them, visible everywhere else.
SYSTEM = frozenset(
    "thumbs.db ehthumbs.db ehthumbs_vista.db desktop.ini icon\r $recycle.bin #recycle @recycle recycler "  # noqa: SIM905
    "@eadir @__thumb __macosx __pycache__ lost+found".split(" ")
) | {"system volume information", "thumbs.db:encryptable"}
SYSTEM_ENDINGS = (":zone.identifier",)
# What the commands write where they are called, which may be in the set itself: a name, and a file that is in it.
OUTPUTS = {
    r"runs": ["*/config.yaml"],
    r"data-\d+": ["samples.png"],
    r"predictions-\d+": ["predictions.png", "*-mask.png", "objects.json"],
}
IMAGE_ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .jif .png .apng .bmp .dib .gif .tif .tiff .webp .ppm .pgm .pbm .pnm .pfm .jp2 .j2k .jpx "  # noqa: SIM905
    ".j2c .jpf .jxl .avif .avifs .heic .heif .ico .icns .tga .dds .pcx .sgi .psd .xbm .xpm .exr .hdr .qoi .mpo .svg "
    ".dng .cr2 .cr3 .nef .arw .orf .raf .rw2 .svs .ndpi .im .eps .msp".split()
)
ARCHIVE_ENDINGS = frozenset(".zip .tar .gz .tgz .bz2 .xz .7z .rar .zst".split())  # noqa: SIM905


@dataclass
class Listing:
    """Files at any depth, sorted, and what is wrong with entries that are left out."""

    files: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def list_files(folder: str | Path) -> Listing:
    """Every file under `folder`; hidden and system files and folders left out, and what `longvision` wrote there.

    A folder that several links lead to is listed once, one that `folder` lies in not at all. A link to nothing counts
    as a file, which cannot be read.
    """
    found, visited = Listing(), _folders_above(folder)
    # links wait until the folders themselves are listed, so that a file keeps its nearest name
    folders, links = deque([os.fspath(folder)]), deque[str]()
    while folders or links:
        _list((folders or links).popleft(), found, visited, folders, links)
    found.files.sort()
    return found


def files_below(folder: str | Path) -> list[str]:
    """The files alone."""
    return list_files(folder).files


def folders_in(folder: str | Path) -> list[str]:
    """Names of the folders in a folder, sorted; links to folders too, what `longvision` wrote there left out."""
    return sorted(entry.name for entry in _entries(folder) if _is_folder(entry) and not is_output(entry.path))


def files_in(folder: str | Path) -> list[str]:
    """Names of the files in a folder itself, sorted."""
    return sorted(entry.name for entry in _entries(folder) if not _is_folder(entry))


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM or name.lower().endswith(SYSTEM_ENDINGS)


def is_output(folder: str | Path) -> bool:
    """Whether it holds runs, or what check-data or predict drew."""
    patterns = [of for name, of in OUTPUTS.items() if re.fullmatch(name, os.path.basename(folder))]
    return any(next(Path(folder).glob(pattern), None) for of in patterns for pattern in of)


def has_image_name(path: str | Path) -> bool:
    """Whether its name ends as an image's does, in capitals or not."""
    return ending(path) in IMAGE_ENDINGS


def spread_evenly(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, ascending: the first, the last and others between them."""
    few = min(count, most)
    return [i * (count - 1) // max(few - 1, 1) for i in range(few)]


def count_images(paths: Iterable[str]) -> int:
    return sum(map(has_image_name, paths))


def ending(path: str | Path) -> str:
    return os.path.splitext(path)[1].lower()


def _list(folder: str, found: Listing, visited: set[tuple[int, int]], folders: deque[str], links: deque[str]) -> None:
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            below = [entry for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        found.problems.append(f"{folder} cannot be listed: {error.strerror or error}")
        return
    if (status.st_dev, status.st_ino) in visited:
        found.problems.append(f"{folder} leads to a folder that is listed elsewhere or that holds this one")
        return
    visited.add((status.st_dev, status.st_ino))
    for entry in sorted(below, key=lambda entry: entry.name):
        if _is_folder(entry) and is_output(entry.path):
            continue
        if _is_folder(entry):
            (links if entry.is_symlink() else folders).append(entry.path)
        elif _is_file(entry) or not os.path.exists(entry.path):
            found.files.append(entry.path)
        else:  # reading it could wait for ever
            found.problems.append(f"{entry.path} is a pipe, a socket or a device")


def _entries(folder: str | Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror or error}") from error


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _folders_above(folder: str | Path) -> set[tuple[int, int]]:
    """A link to one of them would bring in everything beside `folder`."""
    above = {*Path(os.path.abspath(folder)).parents, *Path(os.path.realpath(folder)).parents}
    return {identity for path in above if (identity := _identity(str(path)))}
