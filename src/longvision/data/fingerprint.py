"""What a run knows of its data: classes in order, and which image was in which split with which label.

It is written into the run's folder, so that a run that goes on, or is validated later, sees the images that it saw, or
says what has changed. Loads no torch.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from longvision.data.io.marks import mark_of
from longvision.data.io.threads import in_threads
from longvision.data.sources.base import Source
from longvision.errors import UserError
from longvision.files import written_beside
from longvision.types import Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a set.

    Args:
        name: its path within the set, or what else tells it from the others.
        label: in words or in short.
        mark: of its content, see `mark_of`; empty of what is in no file, whose name tells the content.
    """

    name: str
    label: str
    mark: str = ""

    @property
    def key(self) -> str:
        """Tells the content, wherever it is."""
        return self.mark or self.name


@dataclass(frozen=True)
class Fingerprint:
    """A set as it was.

    Args:
        classes: in the order of their numbers.
        ids: what the labels call them, as COCO's category ids; empty where that is the name.
        drawn: whether the validation images were drawn from the training images.
        binary: see `Source`.
        images: of each split, in order.
        values: of the training images, see `InputSpec.seen`; no part of what is compared.
    """

    classes: list[str]
    ids: list[int | str] = field(default_factory=list)
    drawn: bool = False
    binary: bool = False
    images: dict[Split, list[Image]] = field(default_factory=dict)
    values: Sequence[Any] = field(default=(), compare=False)

    @classmethod
    def of(cls, source: Source[Any], splits: Iterable[Split] | None = None) -> Self:
        """Opens the splits, all that there are when left out. Raises UserError for mistakes in them."""
        there = [split for split in splits or SPLITS if split != "test" or source.has_test]
        seen: Counter[str] = Counter()
        images = {split: _images_of(source, split, seen) for split in there}
        return cls(list(source.classes), list(source.ids), source.draws_validation, source.binary, images)

    def keys(self, *splits: Split) -> set[str]:
        """Of the images of some splits."""
        return {image.key for split in splits for image in self.images.get(split, [])}

    def digest(self, split: Split) -> str:
        """Of names and labels, in order."""
        return self.summary["splits"][split]["digest"]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What a person reads first, and a checkpoint keeps."""
        about = {"classes": self.classes, "ids": self.ids, "drawn": self.drawn, "binary": self.binary}
        splits = {split: self._split_summary(images) for split, images in self.images.items()}
        return {**about, "values": self.values, "splits": splits}

    def _split_summary(self, images: list[Image]) -> dict[str, Any]:
        counts, words = Counter(image.label for image in images), hashlib.blake2b(digest_size=8)
        for image in images:
            words.update(f"{image.name}\0{image.label}\0".encode("utf-8", "surrogatepass"))
        labels = {"of": dict(counts)} if set(counts) <= set(self.classes) else {}
        return {"images": len(images), "digest": words.hexdigest(), **labels}

    def write(self, path: Path) -> None:
        """JSON, an image a line. Raises ExistingFileError."""
        lines = [f'"summary": {json.dumps(self.summary, indent=1, ensure_ascii=False)}']
        for split, images in self.images.items():
            rows = (json.dumps([one.name, one.label, one.mark], ensure_ascii=False) for one in images)
            lines.append(f'"{split}": [\n' + ",\n".join(rows) + "\n]")
        with written_beside(path, durable=True) as beside:
            # names of files may hold bytes that are no UTF-8
            beside.write_bytes(("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8", "surrogatepass"))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises UserError for what `write` did not write."""
        try:
            content = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
            images = {split: [Image(*row) for row in content[split]] for split in SPLITS if split in content}
            about = content["summary"]
            return cls(about["classes"], about["ids"], about["drawn"], about["binary"], images, about["values"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is not what a run writes of its data ({type(error).__name__}): restore it, or remove it to go "
                "on without"
            ) from error


def _images_of(source: Source[Any], split: Split, seen: Counter[str]) -> list[Image]:
    """In order; of several that are called the same, the second is NAME #2. `seen` counts them over the splits."""
    listed = source.listed_images(split)
    marks = iter(in_threads(mark_of, [one.file for one in listed if one.file]))
    images = []
    for one in listed:
        mark = next(marks) if one.file else one.mark
        seen[one.name] += 1
        images.append(
            Image(one.name if seen[one.name] == 1 else f"{one.name} #{seen[one.name]}", one.label, mark or one.mark)
        )
    return images
