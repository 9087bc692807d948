"""Samples of a tar file in WebDataset's layout: neighbouring files that are called alike but for their ending."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from longvision.data.io.listing import IMAGE_ENDINGS
from longvision.data.problems import refuse
from longvision.errors import UserError

LABEL_ENDINGS = (".cls", ".json")


@dataclass(frozen=True)
class Part:
    """A file inside a tar file: where its bytes are."""

    offset: int
    size: int


@dataclass
class Sample:
    """One image with its label: a class number or a class name."""

    key: str
    image: Part
    label: int | str


@dataclass
class _Files:
    """Of one sample."""

    key: str
    images: list[str] = field(default_factory=list)
    image: Part | None = None
    labels: dict[str, int | str] = field(default_factory=dict)


def read_samples(file: Path, label_key: str, notes: list[str]) -> list[Sample]:
    """The samples of a tar file, in order; of images the headers alone are read. Files of no image and no label
    are not used, which `notes` tells.

    Raises:
        UserError: a damaged file, a sample without a label or an image, with two images, or in two places.
    """
    groups: dict[str, _Files] = {}
    again, last = [], None
    try:
        with tarfile.open(file, "r:") as opened:
            for member in _members(opened, file):
                folder, _, name = member.name.rpartition("/")
                key, _, ending = name.partition(".")
                key, ending = f"{folder}/{key}" if folder else key, f".{ending.lower()}"
                if key != last and key in groups:
                    again.append(key)
                last, files = key, groups.setdefault(key, _Files(key))
                if ending in IMAGE_ENDINGS:
                    files.images.append(name)
                    files.image = Part(member.offset_data, member.size)
                elif ending in LABEL_ENDINGS:
                    content: IO[bytes] = opened.extractfile(member)  # type: ignore[assignment]
                    if (label := _label(content.read(), ending, label_key, f"{file}/{member.name}")) is not None:
                        files.labels[ending] = label
    except (tarfile.TarError, OSError) as error:
        raise damaged(file, str(error)) from error
    refuse(again, f"{file} has samples in two places", "write the files of a sample one after another, and each once")
    several = [files.key for files in groups.values() if len(files.images) > 1]
    refuse(several, f"{file} has samples of several images", "keep one image a sample")
    labelled = {key: files for key, files in groups.items() if files.image or ".cls" in files.labels}
    refuse([key for key, files in labelled.items() if not files.labels], f"{file} has samples without a label",
           "give each a .cls with its class number or name, or a .json")  # fmt: skip
    refuse([key for key, files in labelled.items() if not files.image], f"{file} has labels without an image",
           "add the images, or drop the labels")  # fmt: skip
    if others := [key for key in groups if key not in labelled]:
        notes.append(f"{file} has files of no image ({', '.join(others[:3])}): not used")
    return [
        Sample(files.key, files.image, files.labels[min(files.labels)])  # .cls goes before .json
        for files in labelled.values()
        if files.image
    ]


def damaged(file: Path, reason: str) -> UserError:
    return UserError(f"{file} is no tar file, or is cut short or damaged ({reason}): fetch or write it again")


def _members(opened: tarfile.TarFile, file: Path) -> Iterator[tarfile.TarInfo]:
    """Its files, one at a time. Raises TarError where tarfile takes for the end what is none."""
    while (member := opened.next()) is not None:
        opened.members = []  # type: ignore[attr-defined]  # else it keeps a million
        if member.isfile():
            yield member
    with file.open("rb") as end:
        end.seek(opened.offset)
        if end.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end of the archive, at byte {opened.offset}")


def _label(content: bytes, ending: str, label_key: str, name: str) -> Any:
    """Of a .cls file its number or text; of a .json file what it says under the key, None where it has none."""
    try:
        text = content.decode("utf-8").strip()
        found = json.loads(text) if ending == ".json" else text
    except ValueError as error:
        raise UserError(f"{name} is no text in UTF-8, or no JSON: write it anew") from error
    if ending == ".json":
        if not isinstance(found, dict) or label_key not in found:
            return None
        found = found[label_key]
    if isinstance(found, str):
        found = int(found) if found.lstrip("-").isdecimal() else found
    if isinstance(found, bool) or not isinstance(found, int | str) or found == "":
        raise UserError(f"{name} has the label {str(found)[:60]!r}: expected a class number or a class name")
    return found
