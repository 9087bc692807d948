"""What a run writes beside its weights: read from the file's header alone, before torch is loaded."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from longvision.errors import MissingFileError, UserError
from longvision.inference.config import InferenceConfig
from longvision.types import Colour

METADATA_KEY = "longvision"
LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class Description:
    """What a predictor must know of a model, beside its weights.

    Args:
        architecture: the backbone's name in timm.
        classes: their names, in the order of the model's outputs.
        preprocess: how an image becomes the model's input, in plain numbers.
        task: the task it was trained for.
        args: further arguments of the backbone.
        head: further arguments of the task's head.
        palette: a colour for each class, of tasks that draw.
        inference: windows and test-time augmentation, of a segmentation.
        source: the file this was read from, for messages.
    """

    architecture: str
    classes: list[str]
    preprocess: dict[str, Any]
    task: str = "classification"
    args: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    palette: list[Colour] = field(default_factory=list)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    source: str = "the model"

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any], source: str | os.PathLike[str]) -> Self:
        """From what `read_metadata` returns. Raises UserError naming the file, and the key that is missing or wrong."""
        # Runs before InferenceConfig had a name of its own wrote "asking".
        values = {"inference": metadata.get("asking"), **metadata}
        values = {one.name: values[one.name] for one in fields(cls) if values.get(one.name) is not None}
        if missing := [key for key in ("architecture", "classes", "preprocess") if key not in values]:
            raise UserError(
                f"{source} does not say its {', '.join(missing)}: expected a model.safetensors that "
                "`longvision train` wrote"
            )
        for key, value in values.items():
            if key in _CHECKS and not _CHECKS[key][0](value):
                raise UserError(f"{source}: its description has {key} {value!r}, expected {_CHECKS[key][1]}")
        if "palette" in values:
            values["palette"] = [(red, green, blue) for red, green, blue in values["palette"]]
            if len(values["palette"]) < len(values["classes"]):
                raise UserError(f"{source}: its palette has fewer colours than there are classes")
        try:
            values["inference"] = InferenceConfig(**values.get("inference", {}))
        except (TypeError, ValueError) as error:
            raise UserError(f"{source}: its description has an inference that cannot be: {error}") from error
        return cls(**{**values, "source": str(source)})


def find_weights(source: str | os.PathLike[str]) -> Path:
    """A run's folder, or a weights file -> the weights file. Raises UserError where there is none."""
    path = Path(source)
    weights = path / "model.safetensors" if path.is_dir() else path
    if weights.is_file():
        return weights
    if not path.exists():
        raise MissingFileError(f"run folder {path} does not exist: `longvision train` makes one and prints its name")
    if (path / "config.yaml").is_file():
        raise UserError(
            f"{path} has no model.safetensors, its training is not finished: "
            f"go on with longvision train --resume {path}"
        )
    raise UserError(
        f"{path} is not a run folder, it has no config.yaml: give one that `longvision train` made and printed, "
        "or the model.safetensors of one"
    )


def read_description(weights: str | os.PathLike[str]) -> Description:
    """What a run wrote beside its weights; no tensor is read. Raises UserError."""
    return Description.from_metadata(read_metadata(weights), weights)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a safetensors file says of itself in its header: its length in 8 bytes, then JSON. {} where it says nothing.

    Raises:
        MissingFileError: no such file.
        UserError: not a safetensors file, one that is cut short, or metadata that is no JSON object.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"{path} is not a file: expected the model.safetensors of a run")
    try:
        metadata = _header(Path(path)).get("__metadata__", {}).get(METADATA_KEY, "{}")
        described = json.loads(metadata)
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise UserError(f"{path} is not a safetensors file that can be read: {error}") from error
    if not isinstance(described, dict):
        raise UserError(f"{path}: its metadata {METADATA_KEY!r} is {metadata[:50]}, expected a JSON object")
    return described


def _header(path: Path) -> dict[str, Any]:
    """Raises ValueError for a file that is not whole."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        there = os.fstat(file.fileno()).st_size - 8
        if not 0 < length <= min(LARGEST_HEADER, max(there, 0)):
            raise ValueError(f"a header of {length} bytes in a file of {there + 8}")
        header = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    if max(ends, default=0) != there - length:
        raise ValueError(f"{there - length} bytes of tensors, its header says {max(ends, default=0)}")
    return header


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and all(type(one) is int for one in value)


_A_DICT: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, dict), "an object of names and values")
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "architecture": (lambda value: isinstance(value, str), "a model's name"),
    "task": (lambda value: isinstance(value, str), "a task's name"),
    "classes": (_strings, "a list of names"),
    "palette": (
        lambda value: isinstance(value, list) and all(_numbers(one, 3) for one in value),
        "a list of colours, (red, green, blue) each",
    ),
    "preprocess": (
        lambda value: isinstance(value, dict) and _numbers(value.get("size"), 2),
        "an object with the input's size, (height, width)",
    ),
    "args": _A_DICT,
    "head": _A_DICT,
    "inference": _A_DICT,
}
