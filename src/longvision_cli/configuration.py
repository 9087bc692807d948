"""From recipes, a user's YAML and dotted options to the dataclasses of a run.

A recipe names its task and the source of its data; with these the registry says which dataclasses hold the options, and
a mistyped one is told at once, before torch is loaded.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from longvision.data.packing import PackingConfig
from longvision.errors import MissingFileError, UserError, user_paths
from longvision.files import written_beside
from longvision.names import did_you_mean
from longvision.registry import TASKS, load
from longvision.types import DataInfo
from longvision_cli.arguments import ArgumentParser, Words
from longvision_cli.recipes import find_recipe
from longvision_cli.trainer_options import TrainerOptions
from longvision_cli.values import Key, build, in_words, keys_of, plain

RENAMED = {"model.asking": "model.inference"}  # key or table of keys, as earlier versions called it -> as it is called
DEFAULT_TASK = "classification"
NO_LONGER = {"resume", "trainer.callbacks", "trainer.plugins"}  # in files of earlier versions; null says nothing
KINDS = {"task": str, "source": str, "runs": str, "seed": int, "wandb": str | None, "save_every": int}
GENERAL = {name: Key(name, kind, None) for name, kind in KINDS.items()}


@dataclass
class Configuration:
    """Parsed and checked."""

    task: str
    source: str
    model: Any
    data: Any
    trainer: TrainerOptions
    runs: str = "runs"
    seed: int = 0
    wandb: str | None = None
    save_every: int = 0

    def __post_init__(self) -> None:
        if self.save_every < 0:
            raise UserError(f"--save-every {self.save_every}: expected a number of steps, or 0")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed}: expected a whole number from 0 to {2**32 - 1}")

    def save(self, path: Path) -> None:
        """Write all values. Raises FileExistsError."""
        text = yaml.safe_dump(plain(self), sort_keys=False, allow_unicode=True)
        with user_paths(), written_beside(path, durable=True) as beside:
            beside.write_text(text, encoding="utf-8")

    def build_task(self, info: DataInfo, weights_follow: bool = False) -> Any:
        """The task for this data. With `weights_follow` a checkpoint fills the model, and what it was pretrained with
        is not needed again."""
        config = replace(self.model, pretrained=False) if weights_follow else self.model
        task = load(TASKS[self.task].module)(config, info)
        task.config = self.model
        return task


def add_options(parser: ArgumentParser) -> None:
    """What `longvision train` and `longvision check-data` take beside dotted options."""
    parser.add_argument(
        "-c", "--config", action="append", help="a recipe (`longvision recipes` lists them) or a YAML file of yours"
    )
    parser.add_argument("--task", help=f"one of {', '.join(TASKS)}")
    parser.add_argument("--source", help="where images come from; each task has its own")
    parser.add_argument("--runs", help="the folder in which a run gets a folder of its own (default: runs)")
    parser.add_argument("--seed", help="of weights, order and augmentation (default: 0)")


def read_recipes(words: Words, default: str) -> Configuration:
    """The recipes that -c names, or the default one where no task is named, under the words. Raises UserError."""
    told = words.options.task or words.options.source
    names = words.options.config or ([] if told else [default])
    return configure([find_recipe(name) for name in names], words)


def configure(files: list[Path], words: Words, of_run: bool = False) -> Configuration:
    """YAML files, the later over the earlier, and the words over them all.

    A run's own file (`of_run`) may have been written by an earlier version: keys that have other names now are read.

    Raises:
        UserError: a key that is not there, with the nearest ones; a value of the wrong kind; a value that is missing;
            of a run, another task or source than its own.
    """
    contents = [(path, _read_yaml(path)) for path in files]
    general = {
        name: GENERAL[name].read(content[name]) for _, content in contents for name in content if name in GENERAL
    }
    given = {name: text for name, text in vars(words.options).items() if name in GENERAL and text is not None}
    if of_run:
        _refuse_another(general, given)
    general |= {name: GENERAL[name].read(text, is_text=True) for name, text in given.items()}
    task = _choose("task", general.setdefault("task", DEFAULT_TASK), list(TASKS))
    sources = list(TASKS[task].sources)
    source = _choose(f"source of {task}", general.setdefault("source", sources[0]), sources)
    options = options_of(task, source)
    keys = {key.name: key for section, kind in options.items() for key in keys_of(kind, section)}
    if vars(words.options).get("help"):
        print_help(words.parser, keys)
        raise SystemExit(0)

    values: dict[str, Any] = {}
    for path, content in contents:
        own = {section: content[section] for section in content if section not in GENERAL}
        _put_all(values, keys, list(_flat(own, keys)), path.name, of_run)
    words.parser.refuse(words.unknown, [f"--{name}" for name in keys])
    _put_all(values, keys, words.dotted)
    if missing := [name for name, key in keys.items() if key.default is MISSING and name not in values]:
        raise UserError(f"{', '.join(missing)} is missing: pass {' '.join(f'--{name} VALUE' for name in missing)}")
    return Configuration(**general, **{section: build(kind, section, values) for section, kind in options.items()})


def _refuse_another(own: dict[str, Any], given: dict[str, str]) -> None:
    """Raises UserError for another task or source than a run's own, which it keeps."""
    task = _choose("task", own.get("task", DEFAULT_TASK), list(TASKS))
    kept = {"task": task, "source": own.get("source", next(iter(TASKS[task].sources)))}
    for name, value in kept.items():
        if given.get(name, value) != value:
            raise UserError(
                f"--{name} {given[name]}: the {name} of this run is {value}, and it keeps it: leave --{name} out, or "
                "start a new run"
            )


def absolute_paths(data: Any) -> dict[str, str]:
    """Of the options of data, those that name a file or folder, wherever a command is called from."""
    values = {name: getattr(data, name, None) for name in ("path", "classes_file", "images")}
    return {name: os.path.abspath(value) for name, value in values.items() if value and os.path.exists(value)}


def check_path(configuration: Configuration, words: Words, run: Path) -> None:
    """Raises MissingFileError where a run's data is not where it was and no option says where it is."""
    path = getattr(configuration.data, "path", None)
    if path is None or os.path.exists(path) or "data.path" in dict(words.dotted):
        return
    where = "" if os.path.isabs(path) else f" in {os.getcwd()}, and is relative to the folder that training began in"
    raise MissingFileError(f"{path}, the data of {run}, does not exist{where}: give --data.path, where it is now")


def options_of(task: str, source: str) -> dict[str, type]:
    """Section of the configuration -> the dataclass of its options."""
    return {
        "model": load(TASKS[task].config),
        "data": load(TASKS[task].sources[source]),
        "trainer": TrainerOptions,
    }


def print_help(parser: ArgumentParser, keys: dict[str, Key]) -> None:
    """The parser's help, and all dotted options with what they mean and are by default."""
    for section in dict.fromkeys(name.split(".")[0] for name in keys):
        group = parser.add_argument_group(f"--{section}.…")
        for name, key in keys.items():
            if name.startswith(f"{section}."):
                default = "" if key.default is MISSING else f"default: {json.dumps(plain(key.default))}"
                words = "; ".join(filter(None, [in_words(key.type), default]))
                group.add_argument(f"--{name}", metavar="…", help=f"{key.help} ({words})".strip().replace("%", "%%"))
    parser.print_help()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with user_paths():
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML that can be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no configuration: expected keys such as model, data and trainer")
    return content


def _choose(what: str, name: str, known: list[str]) -> str:
    if name not in known:
        raise UserError(f"unknown {what} {name!r}: {did_you_mean(name, known)}")
    return name


def _flat(content: dict[str, Any], keys: dict[str, Key], before: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested tables, down to the keys that there are or, beside them, to the last."""
    for name, value in content.items():
        if isinstance(value, dict) and f"{before}{name}" not in keys:
            yield from _flat(value, keys, f"{before}{name}.")
        elif value is not None or not any(key.startswith(f"{before}{name}.") for key in keys):  # no table left empty
            yield f"{before}{name}", value


def _put_all(
    values: dict[str, Any], keys: dict[str, Key], given: list[tuple[str, Any]], file: str = "", of_run: bool = False
) -> None:
    """Over what is there. Where images are no longer packed, the options of packs go that were there before."""
    for name, value in given:
        _put(values, keys, name, value, file, of_run)
    names = {name for name, _ in given}
    if "data.pack" in names and not values["data.pack"]:
        for name in {f"data.{each.name}" for each in fields(PackingConfig)} - names:
            values.pop(name, None)


def _put(
    values: dict[str, Any], keys: dict[str, Key], name: str, value: Any, file: str = "", of_run: bool = False
) -> None:
    """Set one value, of a file or, without one, the text of an option. Raises UserError."""
    table, _, item = name.rpartition(".")
    old = next((old for old in RENAMED if f"{name}.".startswith(f"{old}.")), None)
    if name in keys:
        values[name] = keys[name].read(value, is_text=not file)
    elif table in keys and keys[table].holds_names:
        values[table] = {**(values.get(table) or {}), item: Key(name, Any, None).read(value, is_text=not file)}
    elif old and of_run and file:
        _put(values, keys, RENAMED[old] + name[len(old) :], value, file)
    elif not (value is None and name in NO_LONGER):
        where, dashes = (f"{file}: ", "") if file else ("option ", "--")
        if old:
            raise UserError(f"{where}{dashes}{name} is called {dashes}{RENAMED[old]}{name[len(old) :]} now")
        if name == "data.path":
            raise UserError(
                f"{where}{dashes}{name}: this source makes its own images; for yours choose another --source"
            )
        near = did_you_mean(f"{dashes}{name}", [f"{dashes}{key}" for key in keys], 0.7, "--help lists those there are")
        raise UserError(f"{where}{dashes}{name} is unknown: {near}")
