"""`longvision validate`: what a run's model reaches on its data, or on the same kind of data elsewhere."""

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from longvision.data.problems import listing
from longvision.data.sources.base import Source, Trained
from longvision.errors import UserError
from longvision.files import find_weights
from longvision.inference.description import Description, read_description
from longvision.text import printable
from longvision.types import Split
from longvision_cli.arguments import ArgumentParser, Words, take_apart
from longvision_cli.configuration import Configuration, check_path, configure
from longvision_cli.folders import free_folder
from longvision_cli.notes import print_notes, tell
from longvision_cli.quiet import quiet
from longvision_cli.token_curve import evaluate_by_tokens, read_budgets, write_curve

if TYPE_CHECKING:
    from longvision.engine.run import Run


def run(arguments: list[str]) -> int:
    words = _parse(arguments)
    budgets = read_budgets(words.options.tokens)
    if words.options.out is not None and not budgets:
        raise UserError("--out is for the files of --tokens: nothing else is written, leave it out")
    out = free_folder(words.options.out, "validation-{}", "--out")
    from longvision.engine.run import Run

    folder = Run.open(words.options.run)
    configuration = configure(folder.configs()[-1:], words, of_run=True)
    if configuration.task != "classification" and "data.size" in dict(words.dotted):
        raise UserError("--data.size: a dense run keeps the size that it was trained at; images may have any size")
    if configuration.task != "classification" and budgets:
        raise UserError(f"--tokens: {folder.path} is a model for {configuration.task}: only a classifier has tokens")
    check_path(configuration, words, folder.path)
    _as_evaluated(configuration, words)
    about = read_description(find_weights(folder.path))
    quiet()  # before the data is opened, which may warn
    source, split, where = _source(folder, about, configuration, words)

    from longvision.engine.report import evaluate
    from longvision.engine.trainer import make_trainer
    from longvision.models.weights.files import restore_weights

    data = configuration.data.build(source, about.input.seen)
    task = configuration.build_task(data.info, weights_follow=True)
    restore_weights(task.model, find_weights(folder.path))
    trainer = make_trainer(vars(configuration.trainer))
    if budgets:
        outcomes = evaluate_by_tokens(trainer, task, data, split, budgets)
    else:
        outcomes = {0: evaluate(trainer, task, data, split)}
    outcome = next(iter(outcomes.values()))
    if not outcome.metrics:
        raise UserError(str(outcome))
    if not trainer.is_global_zero:  # of several the first speaks
        return 0
    print(f"{task.evaluated} images of {where}{printable(data.name)}")
    print_notes(source)
    tell([*data.unreadable(outcome.split), *task.remarks()])
    if budgets:
        write_curve(outcomes, out, f"{task.config.name} on {where}{data.name}")
        return 0
    _print_metrics(outcome.metrics, task)
    return 0


def _parse(arguments: list[str]) -> Words:
    """Raises UserError."""
    parser = ArgumentParser(
        prog="longvision validate",
        usage="longvision validate RUN [--split val|test] [--tokens N,N,…] [--data.path DIR] [--data.… VALUE] "
        "[--trainer.… VALUE]",
        description="Evaluates the model of a run's folder and prints its metrics. --data.path evaluates on data "
        "elsewhere: all of it, with the run's classes; any other key of the configuration works too.",
    )
    parser.add_argument("run", metavar="RUN", help="a folder that `longvision train` made")
    parser.add_argument("--split", choices=("val", "test"), help="(default: val; of data elsewhere, what there is)")
    parser.add_argument(
        "--tokens",
        metavar="N,N,…",
        help="of a classifier that takes images of any size: once for each N, images in their own proportions with at "
        "most N patches; writes tokens.csv and draws tokens.png",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="where the files of --tokens go (default: a new folder validation-N here)"
    )
    words = take_apart(parser, arguments)
    if any(word.partition("=")[0] == "--task" for word in words.unknown):
        raise UserError("--task: a run keeps the task that it was trained for, leave it out")
    return words


def _print_metrics(metrics: dict[str, float], task: Any) -> None:
    from longvision.engine.callbacks.progress import percent

    width = max(14, *map(len, metrics))
    for name, value in metrics.items():
        print(f"{name:<{width}} {f'{value:.4f}' if name == 'loss' else percent(value)}")
    for line in task.class_table():
        print(line)


def _as_evaluated(configuration: Configuration, words: Words) -> None:
    """Where training evaluated nothing, or a few batches again and again, everything is evaluated; and on one device,
    on however many it trained."""
    trainer, given = configuration.trainer, dict(words.dotted)
    for name, value in {"devices": 1, "num_nodes": 1, "strategy": "auto"}.items():
        if f"trainer.{name}" not in given:
            setattr(trainer, name, value)
    for name in ("limit_val_batches", "limit_test_batches"):
        if getattr(trainer, name) == 0 and f"trainer.{name}" not in given:
            setattr(trainer, name, None)
    if "trainer.overfit_batches" not in given:
        trainer.overfit_batches = 0.0


def _source(
    folder: "Run", about: Description, configuration: Configuration, words: Words
) -> tuple[Source[Any], Split, str]:
    """-> the images, the split as which they are evaluated, and the words for what they are of the set."""
    from longvision.engine.run_data import evaluated_source, is_own_data, source_elsewhere

    asked = words.options.split
    if "data.path" not in dict(words.dotted) or is_own_data(folder, configuration.data.path):
        source = configuration.data.source()
        _check_classes(words.options.run, about.classes, source)
        split: Split = asked or "val"
        return evaluated_source(folder, source, split), split, f"the {split} split of "
    known = folder.fingerprint()
    binary = known is not None and known.binary
    trained = Trained(about.classes, bool(about.head.get("masks")), binary, about.multilabel)
    source = configuration.data.evaluation_source(trained)
    _check_classes(words.options.run, about.classes, source)
    return source_elsewhere(folder, source, asked)


def _check_classes(run: str, classes: list[str], source: Source[Any]) -> None:
    if classes != source.classes:
        raise UserError(
            f"{run} was trained on the {len(classes)} classes {listing(classes)}, the data has "
            f"{len(source.classes)}, {listing(source.classes)}: {_first_difference(classes, source.classes)}; "
            "give data with the same class names"
        )


def _first_difference(trained: list[str], given: list[str]) -> str:
    number, (one, other) = next(
        (number, pair) for number, pair in enumerate(zip_longest(trained, given), 1) if pair[0] != pair[1]
    )
    return f"the {number}. was {one or 'not there'} and is {other or 'not there'}"
