"""Samples of a tar file in WebDataset's layout: neighbouring files that are called alike but for their ending."""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import IO, Any

from longvision.cache import mark_used, place_of, remove_stale
from longvision.data.io.listing import IMAGE_ENDINGS
from longvision.data.io.marks import mark_of
from longvision.data.io.threads import in_threads
from longvision.data.problems import refuse
from longvision.errors import UserError
from longvision.files import written_beside

LABEL_ENDINGS = (".cls", ".json")
NUMBER = re.compile(r"-?\d{1,18}")  # of longer ones Python makes no int at some length: they are names
FORMAT = 3  # of what is kept, and of how labels are read: one more where either changes
WORTH_KEEPING = 10_000  # samples, of which headers are read in seconds


@dataclass(frozen=True)
class Part:
    """A file inside a tar file: where its bytes are."""

    offset: int
    size: int


@dataclass(frozen=True)
class Sample:
    """One image with its label: a class number or a class name."""

    key: str
    image: Part
    label: int | str
    mark: str  # see `mark_of`


@dataclass
class _Files:
    """Of one sample."""

    key: str
    images: list[str] = field(default_factory=list)
    image: Part | None = None
    labels: dict[str, int | str] = field(default_factory=dict)


def read_samples(files: Sequence[Path], label_key: str, notes: list[str]) -> list[list[Sample]]:
    """The samples of each of these files. Of a large set they are kept in the cache, for as long as the files stay as
    they are. Raises as `_read_samples`."""
    place = place_of("tar", files, (FORMAT, label_key), ".json")
    with suppress(OSError, ValueError, TypeError, KeyError):  # or they are read again
        if place is not None:
            found = json.loads(place.read_bytes())
            mark_used(place)
            samples = [[Sample(key, Part(*part), *rest) for key, part, *rest in rows] for rows in found["samples"]]
            notes += found["notes"]
            return samples
    told: list[str] = []
    samples = [_read_samples(file, label_key, told) for file in files]
    notes += told
    with suppress(OSError):
        if place is not None and sum(map(len, samples)) >= WORTH_KEEPING:
            place.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(place)
            rows = [[[one.key, astuple(one.image), one.label, one.mark] for one in found] for found in samples]
            with written_beside(place, overwrite=True) as beside:
                beside.write_text(json.dumps({"notes": told, "samples": rows}), encoding="utf-8")
    return samples


def _read_samples(file: Path, label_key: str, notes: list[str]) -> list[Sample]:
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
           "give each a .cls with its class number or name, or a .json that has it under "
           f"{label_key!r} (another key: --data.label_key)")  # fmt: skip
    refuse([key for key, files in labelled.items() if not files.image], f"{file} has labels without an image",
           "add the images, or drop the labels")  # fmt: skip
    if not groups:
        notes.append(f"{file} holds no files: if it should, write it again")
    if others := [key for key in groups if key not in labelled]:
        notes.append(f"{file} has files of no image ({', '.join(others[:3])}): not used")
    found = [(files.key, files.image, files.labels[min(files.labels)])  # .cls goes before .json
             for files in labelled.values() if files.image]  # fmt: skip
    marks = in_threads(lambda part: mark_of(str(file), part.offset, part.size), [part for _, part, _ in found])
    return [Sample(*one, mark) for one, mark in zip(found, marks, strict=True)]


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
        found = int(found) if NUMBER.fullmatch(found) else found
    if isinstance(found, bool) or not isinstance(found, int | str) or found == "":
        raise UserError(f"{name} has the label {str(found)[:60]!r}: expected a class number or a class name")
    return found
