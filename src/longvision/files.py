"""Files that are written whole or not at all, and what a weights file says of itself. Loads no torch."""

import json
import os
import secrets
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longvision.errors import ExistingFileError, MissingFileError, UserError

METADATA_KEY = "longvision"  # under which a safetensors file holds our JSON


@contextmanager
def written_beside(path: str | os.PathLike[str], overwrite: bool = False, durable: bool = False) -> Iterator[Path]:
    """A path of its own in the same folder, whose file takes the name `path` when the block ends without an error.

    A reader never sees half a file, and two writers never share one. With `durable`, nor is there half a file after a
    power failure; it waits for the disk.

    Raises:
        ExistingFileError: `path` exists and may not be overwritten, also if another process made it meanwhile.
    """
    path = Path(path)
    if not overwrite and os.path.lexists(path):
        raise _exists(path)
    beside = path.with_name(f".{path.stem[:20]}-{secrets.token_hex(6)}{path.suffix}")
    try:
        yield beside
        if durable:
            sync(beside)
        if overwrite:
            os.replace(beside, path)
        else:
            _link_new(beside, path)
        if durable:
            sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def replace_durably(beside: Path, path: Path, backup: Path | None = None) -> None:
    """Give a file the name of another, which takes the name `backup`. If power fails one of them is there, whole."""
    sync(beside)
    if backup is not None:
        os.replace(path, backup)
    os.replace(beside, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk. Windows knows no such thing of folders."""
    if os.name == "nt" and path.is_dir():
        return
    number = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _link_new(beside: Path, path: Path) -> None:
    """Unlike a rename, a link fails where its name is taken, whoever took it since."""
    try:
        os.link(beside, path)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError:  # a file system without links: the name is taken first, then given its content
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError as error:
            raise _exists(path) from error
        os.replace(beside, path)


def _exists(path: Path) -> ExistingFileError:
    return ExistingFileError(f"{path} exists already and is not overwritten: give another name")


def check_new_folder(given: str, option: str) -> None:
    """Raises ExistingFileError for a folder that results cannot go to: where a file is, or where something is in it."""
    for place in (Path(given), *Path(given).parents):
        if place.exists() and not place.is_dir():
            raise ExistingFileError(f"{option} {given}: {place} is a file, not a folder: give another {option}")
    if Path(given).is_dir() and any(Path(given).iterdir()):
        raise ExistingFileError(f"{option} {given} exists already and is not overwritten: give another {option}")


def check_run(folder: Path) -> None:
    """Raises UserError for what is no run's folder."""
    if not folder.exists():
        raise MissingFileError(f"run folder {folder} does not exist: `longvision train` makes one and prints its name")
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder} is not a run folder, it has no config.yaml: give one that `longvision train` made and printed"
        )


def find_weights(source: str | os.PathLike[str]) -> Path:
    """A run's folder, or a weights file -> the weights file. Raises UserError where there is none."""
    path = Path(source)
    weights = path / "model.safetensors" if path.is_dir() else path
    if not weights.is_file():
        check_run(path)
        raise UserError(
            f"{path} has no model.safetensors, its training is not finished: "
            f"go on with longvision train --resume {shlex.quote(str(path))}"
        )
    return weights


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What was written beside the tensors of a safetensors file, without reading those; {} for a file of others.

    Raises as `opened_weights`.
    """
    with opened_weights(path, "np") as (_, metadata):
        return metadata


@contextmanager
def opened_weights(path: str | os.PathLike[str], framework: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A safetensors file, opened to give tensors of a framework ("pt", "np"), and what was written beside them.

    Raises:
        MissingFileError: no such file.
        UserError: no safetensors file, or metadata that is not what we write (the key that is wrong).
    """
    import safetensors

    if not Path(path).is_file():
        raise MissingFileError(f"{path} is not a file: expected weights (.safetensors)")
    try:
        file = safetensors.safe_open(path, framework)
        metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a safetensors file that can be read: {error}") from error
    with file:
        _check_metadata(metadata, path)
        yield file, metadata


def _check_metadata(metadata: Any, path: str | os.PathLike[str]) -> None:
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: its metadata is {json.dumps(metadata)[:60]}, expected a JSON object")
    for key, (is_right, expected) in _KNOWN.items():
        if key in metadata and not is_right(metadata[key]):
            raise UserError(f"{path}: its metadata has {key}={json.dumps(metadata[key])[:60]}, expected {expected}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


def _is_preprocess(value: Any) -> bool:
    return isinstance(value, dict) and _is_count(value.get("channels")) and _is_size(value.get("size"))


_KNOWN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "grid": (_is_size, "rows and columns"),
    "cls_token": (lambda value: value in ("none", "head", "middle", "double"), "none, head, middle or double"),
    "positions": (lambda value: isinstance(value, str), "a word"),
    "classes": (lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value), "names"),
    "preprocess": (_is_preprocess, "an object with channels and size"),
}
