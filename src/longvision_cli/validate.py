"""`longvision validate`: what a run's model reaches on its data, or on the same kind of data elsewhere."""

from itertools import zip_longest

from longvision.errors import UserError
from longvision.text import printable
from longvision_cli.arguments import ArgumentParser, take_apart
from longvision_cli.configuration import configure
from longvision_cli.notes import print_notes
from longvision_cli.quiet import quiet


def run(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="longvision validate",
        usage="longvision validate RUN [--split val|test] [--data.path DIR] [--data.… VALUE] [--trainer.… VALUE]",
        description="Evaluates the model of a run's folder and prints its metrics. --data.path evaluates on data "
        "elsewhere, with the same classes; any other key of the configuration works too.",
    )
    parser.add_argument("run", metavar="RUN", help="a folder that `longvision train` made")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="(default: %(default)s)")
    words = take_apart(parser, arguments)
    if any(word.partition("=")[0] == "--task" for word in words.unknown):
        raise UserError("--task: a run keeps the task that it was trained for, leave it out")
    from longvision.engine.run import Run
    from longvision.inference.description import read_description

    folder = Run.open(words.options.run)
    configuration = configure(folder.configs()[-1:], words, of_run=True)
    if configuration.task != "classification" and "data.size" in dict(words.dotted):
        raise UserError("--data.size: a dense run keeps the size that it was trained at; images may have any size")
    classes = read_description(folder.trained_weights()).classes
    source = configuration.data.source()
    if classes != source.classes:
        raise UserError(
            f"{words.options.run} was trained on the classes {', '.join(classes[:5])}… ({len(classes)}), the data has "
            f"{', '.join(source.classes[:5])}… ({len(source.classes)}): {_first_difference(classes, source.classes)}; "
            "give data with the same class names"
        )

    quiet()
    from longvision.engine.callbacks.progress import percent
    from longvision.engine.report import evaluate
    from longvision.engine.trainer import make_trainer
    from longvision.models.weights.files import restore_weights

    data = configuration.data.build(source)
    task = configuration.build_task(data.info, weights_follow=True)
    restore_weights(task.model, folder.trained_weights())
    outcome = evaluate(make_trainer(vars(configuration.trainer)), task, data, words.options.split)
    if not outcome.metrics:
        raise UserError(str(outcome))
    print(f"{task.evaluated} images of the {outcome.split} split of {printable(data.name)}")
    print_notes(source)
    for name, value in outcome.metrics.items():
        print(f"{name:<14} {value:.4f}" if name == "loss" else f"{name:<14} {percent(value)}")
    for line in task.class_table():
        print(line)
    return 0


def _first_difference(trained: list[str], given: list[str]) -> str:
    number, (one, other) = next(
        (number, pair) for number, pair in enumerate(zip_longest(trained, given), 1) if pair[0] != pair[1]
    )
    return f"the {number}. was {one or 'not there'} and is {other or 'not there'}"
