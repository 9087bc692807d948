"""`longvision validate`: what a run's model reaches on its data, or on the same kind of data elsewhere."""

from itertools import zip_longest

from longvision_cli.arguments import unknown_option
from longvision_cli.configuration import parse
from longvision_cli.quiet import quiet

HELP = """usage: longvision validate RUN [--split val|test] [--data.path DIR] [--data.… VALUE] [--trainer.… VALUE]

Evaluates the model of a run's folder and prints its figures.

  RUN           a folder that `longvision train` made
  --split       val (default) or test
  --data.path   evaluate on data elsewhere, with the same classes; any other key of the configuration works too
"""


def run(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    quiet()
    path, split, overrides = _parse(arguments)

    from longvision.engine.run import Run
    from longvision.engine.trainer import evaluate, make_trainer
    from longvision.inference.description import read_description
    from longvision.models.weights.files import restore_weights

    folder = Run.open(path)
    configuration = parse(folder.configs()[-1:], overrides, None, None, None, "longvision validate")
    data, task = configuration.build(weights_follow=True)
    if any(word.split("=")[0] == "--data.size" for word in overrides) and task.kind != "classification":
        raise ValueError("--data.size: a dense run keeps the size that it was trained at; pictures may have any size")
    classes = read_description(folder.trained_weights()).classes
    if classes != data.classes:
        raise ValueError(
            f"{path} was trained on the classes {', '.join(classes[:5])}… ({len(classes)}), the data has "
            f"{', '.join(data.classes[:5])}… ({len(data.classes)}): {_first_difference(classes, data.classes)}; "
            "give data with the same class names"
        )
    restore_weights(task.model, folder.trained_weights())
    outcome = evaluate(make_trainer(configuration.trainer), task, data, split)
    print(f"{task.evaluated(data, split)} images of the {split} split of {data.name}")
    for name, value in outcome.metrics.items():
        print(f"{name:<14} {value:.4f}" if name == "loss" else f"{name:<14} {100 * value:.1f} %")
    for line in task.class_table():
        print(line)
    return 0


def _first_difference(trained: list[str], given: list[str]) -> str:
    number, (one, other) = next(
        (number, pair) for number, pair in enumerate(zip_longest(trained, given), 1) if pair[0] != pair[1]
    )
    return f"the {number}. was {one or 'not there'} and is {other or 'not there'}"


def _parse(arguments: list[str]) -> tuple[str, str, list[str]]:
    """-> run folder, split, and what overrides its configuration."""
    rest, path, split = list(arguments), None, "val"
    overrides: list[str] = []
    while rest:
        word = rest.pop(0)
        if word.startswith("--split"):
            split = word.split("=", 1)[1] if "=" in word else (rest.pop(0) if rest else "")
        elif word.split("=")[0] == "--task":
            raise ValueError("--task: a run keeps the task that it was trained for; leave it away")
        elif word.startswith("--"):
            overrides.append(word)
            if "=" not in word and rest:
                overrides.append(rest.pop(0))
        elif path is None:
            path = word
        else:
            raise ValueError(unknown_option(word, []))
    if path is None:
        raise ValueError("no run folder given: longvision validate RUN, one that `longvision train` printed")
    if split not in ("val", "test"):
        raise ValueError(f"--split {split!r} is unknown: choose val or test")
    return path, split, overrides
