"""What a run writes beside its weights: read from the file's header alone, before torch is loaded."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from longvision.data.image_ids import are_image_ids, read_image_ids
from longvision.data.transforms.input_spec import InputSpec
from longvision.errors import UserError
from longvision.files import read_metadata
from longvision.inference.config import InferenceConfig
from longvision.types import CocoIds, Colour


@dataclass(frozen=True)
class Description:
    """What a predictor must know of a model, beside its weights.

    Args:
        architecture: the backbone's name in timm.
        classes: their names, in the order of the model's outputs.
        input: how an image becomes the model's input.
        task: the task it was trained for.
        args: further arguments of the backbone.
        head: further arguments of the task's head.
        palette: a colour for each class, of tasks that draw.
        inference: windows and test-time augmentation, of a segmentation.
        coco_ids: what the data calls its categories, and its images where a run's folder says it, if it was COCO's.
        multilabel: whether an image may have any number of the classes, of a classification.
        source: the file this was read from, for messages.
    """

    architecture: str
    classes: list[str]
    input: InputSpec
    task: str = "classification"
    args: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    palette: list[Colour] = field(default_factory=list)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    coco_ids: CocoIds | None = None
    multilabel: bool = False
    source: str = "the model"

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any], source: str | os.PathLike[str]) -> Self:
        """From what `read_metadata` returns. Raises UserError naming the file, and the key that is missing or wrong."""
        # Runs before InferenceConfig had a name of its own wrote "asking".
        values = {**metadata, "inference": metadata.get("inference") or metadata.get("asking")}
        known = [*(one.name for one in fields(cls) if one.name != "source"), "preprocess"]
        values = {name: values[name] for name in known if values.get(name) is not None}
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
        if "coco_ids" in values:
            values["coco_ids"] = CocoIds(**values["coco_ids"])
        for key, name, make in (("preprocess", "input", _input), ("inference", "inference", _inference)):
            try:
                values[name] = make(values.pop(key, {}))
            except (TypeError, ValueError) as error:
                raise UserError(f"{source}: its description has {key} that cannot be: {error}") from error
        return cls(**values, source=str(source))


def read_description(weights: str | os.PathLike[str]) -> Description:
    """What a run wrote beside its weights; no tensor is read. Raises UserError."""
    return Description.from_metadata(read_metadata(weights), weights)


def with_image_ids(description: Description, source: str | os.PathLike[str]) -> Description:
    """With the ids that a run's folder holds of its training data's images; as it is for a weights file.

    Raises UserError for a damaged file of ids.
    """
    ids = description.coco_ids
    if ids is None or ids.images or not Path(source).is_dir():
        return description
    return replace(description, coco_ids=replace(ids, images=read_image_ids(Path(source))))


def _input(values: dict[str, Any]) -> InputSpec:
    return InputSpec.from_dict(values)


def _inference(values: dict[str, Any]) -> InferenceConfig:
    return InferenceConfig(**values)


def _is_colour(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(type(one) is int for one in value)


def _are_ids(value: Any) -> bool:
    """An earlier version wrote the images' ids beside them."""
    if not isinstance(value, dict) or not {"categories"} <= set(value) <= {"categories", "images"}:
        return False
    return isinstance(value["categories"], list) and are_image_ids(value.get("images", {}))


_A_DICT: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, dict), "an object of names and values")
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {  # beside those of `read_metadata`
    "architecture": (lambda value: isinstance(value, str), "a model's name"),
    "task": (lambda value: isinstance(value, str), "a task's name"),
    "palette": (
        lambda value: isinstance(value, list) and all(map(_is_colour, value)),
        "a list of colours, (red, green, blue) each",
    ),
    "args": _A_DICT,
    "coco_ids": (_are_ids, "ids of categories"),
    "head": _A_DICT,
    "inference": _A_DICT,
    "multilabel": (lambda value: isinstance(value, bool), "true or false"),
}
