"""`longvision train`: from a recipe and dotted overrides to a run's folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvision.errors import MissingFileError, UnsavedError, UserError, is_unsaved, user_paths
from longvision.text import command_line, printable
from longvision_cli.arguments import ArgumentParser, take_apart
from longvision_cli.changed_options import changed_options
from longvision_cli.configuration import Configuration, absolute_paths, add_options, check_path, configure, read_recipes
from longvision_cli.model_names import check_model, check_size_of, size_notes
from longvision_cli.notes import print_notes, tell
from longvision_cli.quiet import quiet
from longvision_cli.waiting import sleep_soon

if TYPE_CHECKING:
    from longvision.engine.run import Run

DEFAULT_RECIPE = "digits"


def run(arguments: list[str]) -> int:
    sleep_soon()
    configuration, resuming = parse(arguments)
    _check_names(configuration)
    quiet()  # before the data is opened, which may warn
    from longvision.data.index import found_by_one

    # the last of what is told before torch is loaded
    known = found_by_one(partial(_known, configuration, resuming), configuration.runs)
    source, _, (checkpoint, told) = known
    source.notes.extend([*told, *(resuming.notes if resuming else []), *size_notes(configuration)])
    from longvision.engine.trainer import train

    trainer, task, data = _built(configuration, known, checkpoint)
    trained = partial(train, trainer, task, data)
    ways: dict[str, Any] = {"resume": checkpoint, "wandb": configuration.wandb, "save_every": configuration.save_every}
    if not trainer.is_global_zero:  # the first process makes the folder, looks at the images, and speaks for all
        trained(resuming.run if resuming else None, **ways)
        return 0
    run_folder = _run_folder(configuration, resuming, task, data)
    with _said_what_is_left(run_folder, new=resuming is None):
        configuration.trainer.precision = trainer.precision  # the default depends on the machine
        _announce(task, data)
        _begin(configuration, resuming, run_folder, trainer)
        outcome = trained(run_folder, **ways)
    return _tell_outcome(outcome, trainer, task, data, run_folder)


def _check_names(configuration: Configuration) -> None:
    """Raises UserError for what can be told of names alone."""
    _check_wandb(configuration.wandb)
    check_model(configuration.model.name)
    check_size_of(configuration)


def _check_pretrained(configuration: Configuration) -> None:
    """Of a training that begins. Raises UserError for a file that is not there, or is needed."""
    pretrained = configuration.model.pretrained
    if isinstance(pretrained, str) and not Path(pretrained).is_file():
        weights = Path(pretrained, "model.safetensors")
        here = f"; this run's is {weights}" if weights.is_file() else ""
        raise MissingFileError(f"{pretrained} is not a file: expected a checkpoint (.safetensors, .pth){here}")
    if not pretrained and getattr(configuration.model, "finetune", "full") != "full":
        raise UserError(f"--model.finetune {configuration.model.finetune} starts from a model: give --model.pretrained")


def _built(configuration: Configuration, known: Any, checkpoint: Path | None) -> tuple[Any, Any, Any]:
    """-> trainer, task and data, of the images that `_known` found."""
    from lightning import seed_everything

    from longvision.data.index import hand_over
    from longvision.engine.total_batch import keep_total_batch
    from longvision.engine.trainer import make_trainer

    source, fingerprint, _ = known
    seed_everything(configuration.seed, workers=True, verbose=False)
    data = configuration.data.build(source, fingerprint.values)
    task = configuration.build_task(data.info, weights_follow=checkpoint is not None)
    if checkpoint is None:
        task.check_fit(data)
    data.fingerprint = fingerprint
    trainer = make_trainer(vars(configuration.trainer))
    if trainer.world_size > 1:
        hand_over(known, configuration.runs)
    source.notes.extend(keep_total_batch(trainer, data))
    data.take_up_model(task.model, trainer)
    return trainer, task, data


def _run_folder(configuration: Configuration, resuming: "Resuming | None", task: Any, data: Any) -> "Run":
    """The run's folder, new or the one that goes on; the configuration learns what was measured of the images."""
    from longvision.engine.run import Run

    data.setup("fit")
    # the run reads other images alike, and is used from other folders
    measured = {name: value for name, value in data.measured.items() if name != "seen"}
    if hasattr(configuration.data, "multilabel"):
        measured["multilabel"] = data.source.multilabel
    configuration.data = replace(configuration.data, **measured, **absolute_paths(configuration.data))
    if resuming:
        return resuming.run
    with user_paths():
        return Run.create(configuration.runs, f"{configuration.source}-{task.config.name}")


def _begin(configuration: Configuration, resuming: "Resuming | None", run_folder: "Run", trainer: Any) -> None:
    """Says where the run is; its options are saved now, or, of one that goes on, once it has trained with others."""
    from lightning.pytorch.callbacks import LambdaCallback

    from longvision.engine.callbacks.once_trained import OnceTrained

    save = partial(_save, configuration, run_folder)
    if resuming is None:
        save()
        print(f"run folder {run_folder.path}", flush=True)
        return
    goes_on = partial(print, f"goes on in {run_folder.path}", flush=True)
    trainer.callbacks.insert(0, LambdaCallback(on_train_start=lambda *_: goes_on()))
    if configuration != resuming.before:
        trainer.callbacks.append(OnceTrained(save))


@contextmanager
def _said_what_is_left(run_folder: "Run", new: bool) -> Iterator[None]:
    """An end before the end says how to go on; a new folder that holds nothing is removed."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_what_is_left(run_folder)) from None
    except Exception as error:
        if not is_unsaved(error):
            raise
        raise UnsavedError(f"{error}; {_make_room(run_folder)}") from error
    finally:
        if new:
            run_folder.discard_if_unused()


def _tell_outcome(outcome: Any, trainer: Any, task: Any, data: Any, run_folder: "Run") -> int:
    """-> the exit code."""
    from longvision.engine.trainer import ended_by_time

    tell([*data.unreadable(outcome.split), *task.remarks()])
    if ended := ended_by_time(trainer):
        again = command_line("train", "--resume", run_folder.path, "--trainer.max_time", "TIME")
        tell([f"{ended}; go on with: {again} (from its beginning)"])
    print(f"{', '.join([*outcome.artifacts, 'model.safetensors'])} and its card are in the run's folder")
    print(outcome)
    print(run_folder.path)
    return 1 if outcome.failed else 0


def _known(configuration: Configuration, resuming: "Resuming | None") -> Any:
    """The images, what they are, and the checkpoint to go on from with what is to be told of it. Raises UserError for
    what is wrong with them, or has changed."""
    chosen = resuming.run.resume_from() if resuming else (None, [])
    checkpoint, _ = chosen
    if checkpoint is None:
        _check_pretrained(configuration)
    from longvision.engine.run_data import new_source, resumed_source

    source = configuration.data.source()
    if resuming and (checkpoint or resuming.run.data_files()):
        return *resumed_source(resuming.run, source, resuming.allow_changed_data), chosen
    return *new_source(source, configuration.model.pretrained), chosen


def _save(configuration: Configuration, run_folder: "Run") -> None:
    configuration.save(run_folder.new_config())


def _check_wandb(project: str | None) -> None:
    if project is not None and find_spec("wandb") is None:
        raise UserError(
            f"--wandb {project}: Weights & Biases is not installed: pip install wandb, or leave --wandb out"
        )


@dataclass(frozen=True)
class Resuming:
    """A run that goes on, with which options it did so far, whether its data may have changed, and what is to be told
    of its options."""

    run: "Run"
    before: Configuration
    allow_changed_data: bool
    notes: list[str]


def parse(arguments: list[str]) -> tuple[Configuration, Resuming | None]:
    """-> what to train, and the run that goes on, if one does. Raises UserError, before torch is loaded."""
    parser = ArgumentParser(
        prog="longvision train",
        usage="longvision train [-c RECIPE] [--resume RUN] [--model.… VALUE] [--data.… VALUE] [--trainer.… VALUE]",
        description="Trains a model and evaluates the epoch that validated best. Everything goes into a new folder.",
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="this, with the options of the recipe that -c names")
    add_options(parser)
    parser.add_argument("--resume", metavar="RUN", help="go on from the last checkpoint of this run's folder")
    parser.add_argument(
        "--save-every",
        metavar="STEPS",
        help="a checkpoint after so many steps too (default: 0, after epochs and validations alone)",
    )
    parser.add_argument(
        "--allow-changed-data",
        action="store_true",
        help="with --resume: also where images were added, are gone, or are labelled otherwise",
    )
    parser.add_argument(
        "--allow-changed-config",
        action="store_true",
        help="with --resume: also with options that change what is learnt, as --model.lr and --data.augment.…",
    )
    parser.add_argument("--wandb", metavar="PROJECT", help="log to this project of Weights & Biases too")
    words = take_apart(parser, arguments)
    from longvision.engine.run import Run, check_root

    allow = words.options.allow_changed_data
    if not words.options.resume:
        for name in ("data", "config"):
            if getattr(words.options, f"allow_changed_{name}"):
                raise UserError(f"--allow-changed-{name} is for --resume RUN: a new run takes its {name} as it is")
        configuration = read_recipes(words, DEFAULT_RECIPE)
        check_root(configuration.runs)
        return configuration, None
    if words.options.seed is not None:
        raise UserError("--resume goes on with the run's own --seed: leave it out, or start a new run")
    if words.options.config:
        raise UserError("--resume goes on with the run's own options: leave -c out, or start a new run")
    if words.options.runs is not None:
        raise UserError("--resume goes on in the run's own folder: leave --runs out, or start a new run")
    run = Run.open(words.options.resume)
    before = configure(run.configs()[-1:], replace(words, dotted=[]), of_run=True)
    configuration = configure(run.configs()[-1:], words, of_run=True)
    names = [name for name, _ in words.dotted]
    notes = changed_options(before, configuration, names, words.options.allow_changed_config)
    if run.is_finished() and before.trainer.max_time is None and _length(before) == _length(configuration):
        raise run.finished()
    check_path(configuration, words, run.path)
    return configuration, Resuming(run, before, allow, notes)


def _length(configuration: Configuration) -> list[object]:
    """Where a training ends."""
    return [getattr(configuration.trainer, name) for name in ("max_epochs", "max_steps", "max_time")]


def _what_is_left(run_folder: "Run") -> str:
    """Of a run that was interrupted."""
    again = f"go on with: {command_line('train', '--resume', run_folder.path)}"
    if run_folder.unreported.exists():
        return f"the model is trained, its report is not complete; {again}"
    if run_folder.last.exists():
        return f"saved; {again}"
    return "before there was anything to save"


def _make_room(run_folder: "Run") -> str:
    """Where a disk is full."""
    checkpoint, _ = run_folder.resume_from()
    untouched = f"{checkpoint} is whole" if checkpoint else "there is no checkpoint yet"
    return f"{untouched}: make room, and go on with {command_line('train', '--resume', run_folder.path)}"


def _announce(task: Any, data: Any) -> None:
    splits = ("train", "val", "test") if data.has_test else ("train", "val")
    words = {"train": "training", "val": "validation", "test": "test"}
    counts = ", ".join(f"{len(data.images(split))} {words[split]}" for split in splits)
    parameters = sum(p.numel() for p in task.model.parameters())
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    of_them = f" ({trained:,} of them trained)" if trained < parameters else ""
    print(f"{task.config.name}, {parameters:,} parameters{of_them}, {data.size[0]}x{data.size[1]} pixels")
    print(f"{printable(data.name)}: {len(data.classes)} classes, {counts} images")
    print_notes(data.source)
