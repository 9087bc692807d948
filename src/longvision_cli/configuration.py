"""From a recipe, a user's YAML and dotted overrides to the objects of a run.

A recipe names its task and the source of its data; with these, the parser knows the very classes whose arguments
follow, so that `--help` shows them and a mistyped one is told at once.
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from longvision_cli.recipes import find_recipe

TASKS = {
    "classification": "longvision.tasks.classification.Classification",
    "segmentation": "longvision.tasks.segmentation.Segmentation",
    "detection": "longvision.tasks.detection.Detection",
    "detr": "longvision.tasks.detr.DetrDetection",
}
_OBJECTS = {
    "coco": "longvision.data.detection.CocoData",
    "scattered": "longvision.data.detection.ScatteredDetectionData",
    "voc": "longvision.data.detection.VocData",
}
SOURCES = {
    "classification": {
        "folder": "longvision.data.module.FolderData",
        "digits": "longvision.data.module.DigitsData",
        "parquet": "longvision.data.module.ParquetData",
        "scattered": "longvision.data.module.MostDigitsData",
    },
    "segmentation": {
        "masks": "longvision.data.segmentation.MaskFolderData",
        "scattered": "longvision.data.segmentation.ScatteredSegmentationData",
    },
    "detection": _OBJECTS,
    "detr": _OBJECTS,
}
FROM_DATA = {"classes", "size", "channels", "masks"}  # arguments of a task that its data knows
SET_BY_RUN = {  # arguments of the Trainer that a run's folder decides
    "default_root_dir",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "logger",
}


@dataclass
class Configuration:
    """Parsed and checked; `build` makes the data and the task."""

    parser: jsonargparse.ArgumentParser
    values: jsonargparse.Namespace
    resume: str | None

    @property
    def source(self) -> str:
        return self.values.source

    @property
    def runs(self) -> str:
        return self.values.runs

    @property
    def seed(self) -> int:
        return self.values.seed

    def build(self, weights_follow: bool = False) -> tuple[Any, Any]:
        """-> the data, and the task made for its classes, size and channels.

        With `weights_follow` a checkpoint fills the model, and what it was pretrained with is not needed again.
        """
        made = self.parser.instantiate_classes(self.values)
        self.trainer = dict(made.trainer)
        if weights_follow:
            made.model.pretrained = False
        known = {"classes": made.data.classes, "size": made.data.size, "channels": made.data.channels}
        if hasattr(made.data, "has_masks"):
            known["masks"] = made.data.has_masks
        task = _load(TASKS[self.values.task])(**made.model, **known)
        task.pretrained = bool(self.values.model.pretrained)
        return made.data, task

    def build_data(self) -> Any:
        """The data alone."""
        return self.parser.instantiate_classes(self.values).data

    def save(self, path: Path) -> None:
        """Write all values, resolved. Raises FileExistsError."""
        with path.open("x") as file:
            file.write(self.parser.dump(self.values, skip_none=False))


def read_configuration(arguments: list[str], default: str) -> Configuration:
    """The command line of `longvision train`. Raises ValueError for what does not exist, with the nearest names."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("-c", "--config", action="append", default=[])
    first.add_argument("--resume")
    first.add_argument("--task")
    first.add_argument("--source")
    try:
        chosen, rest = first.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; `longvision train --help` says more") from error
    if chosen.resume:
        from longvision.engine.run import Run

        if chosen.config or any(word.startswith("--model.") for word in rest):
            raise ValueError(
                "--resume goes on with the run's own model: leave -c and --model.… away, or start a new run"
            )
        files = [Run.open(chosen.resume).configs()[-1]]
    else:
        files = [find_recipe(name) for name in chosen.config or [default]]
    return parse(files, rest, chosen.task, chosen.source, chosen.resume, "longvision train")


def parse(
    files: list[Path], rest: list[str], task: str | None, source: str | None, resume: str | None, prog: str
) -> Configuration:
    """YAML files, the later over the earlier, and dotted overrides over them all."""
    contents = [_read_yaml(path) for path in files]
    task = task or _last(contents, "task", "classification")
    task_class = _choose("task", task, TASKS)
    source = source or _last(contents, "source", next(iter(SOURCES[task])))
    parser = make_parser(prog, task_class, _choose(f"source of {task}", source, SOURCES[task]), list(SOURCES[task]))
    known = _known_keys(parser)
    for path, content in zip(files, contents):
        for key in _flat(content):
            _check_key(key, known, f"{path.name}: ", source)
    for word in rest:
        if word.startswith("--") and word != "--help":
            _check_key(word[2:].split("=")[0], known, "option --", source)
    overrides = [word for path in files for word in ("--config", str(path))]
    try:
        values = parser.parse_args([*overrides, f"--task={task}", f"--source={source}", *rest])
    except (jsonargparse.ArgumentError, argparse.ArgumentError) as error:
        raise ValueError(_sentence(str(error))) from error
    return Configuration(parser, values, resume)


def make_parser(prog: str, task: str, source: str, sources: list[str]) -> jsonargparse.ArgumentParser:
    from lightning import Trainer

    parser = jsonargparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [-c RECIPE] [--resume RUN] [--model.… VALUE] [--data.… VALUE] [--trainer.… VALUE]",
        description="Trains a model and evaluates the epoch that validated best. Everything goes into a new folder.",
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument(
        "-c", "--config", action="config", help="a recipe (`longvision recipes` lists them) or a YAML file of yours"
    )
    parser.add_argument("--resume", metavar="RUN", help="go on from the last checkpoint of this run's folder")
    parser.add_argument("--task", default="classification", help=f"one of {', '.join(TASKS)}")
    parser.add_argument("--source", default="folder", help=f"where images come from: {', '.join(sources)}")
    parser.add_argument("--runs", default="runs", help="the folder in which a run gets a folder of its own")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    parser.add_class_arguments(_load(task), "model", skip=FROM_DATA, instantiate=False)
    parser.add_class_arguments(_load(source), "data")
    parser.add_class_arguments(Trainer, "trainer", skip=SET_BY_RUN, instantiate=False)
    return parser


def _load(path: str) -> Any:
    module, name = path.rsplit(".", 1)
    return getattr(import_module(module), name)


def _choose(what: str, name: str, table: dict[str, str]) -> str:
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}: {_hint(str(name), list(table))}")
    return table[name]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML that can be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no configuration: expected keys such as model, data and trainer")
    return content


def _last(contents: list[dict[str, Any]], key: str, default: str) -> str:
    return next((content[key] for content in reversed(contents) if key in content), default)


def _known_keys(parser: jsonargparse.ArgumentParser) -> set[str]:
    return {option[2:] for action in parser._actions for option in action.option_strings if option.startswith("--")}


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _check_key(key: str, known: set[str], where: str, source: str) -> None:
    """A key is known itself, or names a section, or lies inside one that takes any keys (a model's args)."""
    sections = {"model", "data", "trainer", "data.augment"}
    parents = {key.rsplit(".", n)[0] for n in range(1, key.count(".") + 1)}
    if key in known | sections or parents & (known - sections):
        return
    if key == "data.path":
        raise ValueError(f"{where}{key}: the source {source} makes its own pictures; for yours choose another --source")
    dashes = "--" if where.endswith("--") else ""
    raise ValueError(f"{where}{key} is unknown: {_hint(key, sorted(known - sections), dashes)}")


def _hint(name: str, known: list[str], before: str = "") -> str:
    """The nearest names: the same last word in another section first."""
    same = [key for key in known if key.split(".")[-1] == name.split(".")[-1]]
    near = list(dict.fromkeys([*same, *get_close_matches(name, known, n=3, cutoff=0.7)]))[:3]
    if near:
        return f"did you mean {' or '.join(before + key for key in near)}?"
    return f"expected one of {', '.join(known)}" if len(known) < 20 else "--help lists those there are"


def _sentence(message: str) -> str:
    """What came, what was expected, without the frame that jsonargparse puts around it."""
    text = " ".join(message.split())
    if missing := re.search(r"arguments are required: (.+)", text):
        names = missing[1].split(", ")
        return f"{', '.join(names)} is missing: pass {' '.join(f'--{name} VALUE' for name in names)}"
    if extra := re.search(r"unrecognized arguments: (\S+)", text):
        return f"{extra[1]!r} is one argument too many: options are written --name VALUE"
    key, given = re.search(r'"([\w.]+)":', text), re.search(r"(?:Given|Got) value: (.*)$", text)
    if not key or not given:
        return text
    # of "Expected a <class 'int'>" and "Expected a typing.Literal['a', 'b']"
    kinds = re.findall(r"Expected an? (?:typing\.)?<class '(\w+)'>", text)
    literals = [word.strip(" '") for words in re.findall(r"Literal\[([^]]*)\]", text) for word in words.split(",")]
    expected = dict.fromkeys([*map(_in_words, kinds), *literals])
    words = f"one of {', '.join(expected)}" if literals else " or ".join(expected)
    return f"{key[1]} is {given[1]!r}: expected {words or 'another value'}"


def _in_words(kind: str) -> str:
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word"}
    return {**words, "NoneType": "null", "tuple": "a list in brackets"}.get(kind, kind)
