"""Tar files as WebDataset's writer makes them: the files of a sample one after another, in the format of GNU's tar."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def write_tar(path: Path, samples: Iterable[Mapping[str, bytes | str]]) -> None:
    """Each sample is {"__key__": "000", "jpg": content, "cls": "7"}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as file:
        for sample in samples:
            for ending, content in sample.items():
                if ending != "__key__":
                    content = content.encode() if isinstance(content, str) else content
                    member = tarfile.TarInfo(f"{sample['__key__']}.{ending}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
