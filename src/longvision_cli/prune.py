"""`longvision prune`: a smaller model out of a trained one, which every other command takes."""

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from longvision.errors import UserError, user_paths
from longvision.files import find_weights, read_metadata
from longvision.inference.description import Description
from longvision.text import command_line
from longvision_cli.arguments import ArgumentParser
from longvision_cli.folders import find_named_images, free_folder
from longvision_cli.labelled import labelled_batches, run_configuration
from longvision_cli.notes import tell
from longvision_cli.quiet import quiet

IMAGES = 256  # where nobody says how many


def run(arguments: list[str]) -> int:
    options = _parse(arguments)
    from longvision.engine.run import Run
    from longvision.inference.device import check_device

    # All mistakes that can be told without torch are told before it is loaded.
    if not 0 < options.keep <= 1:
        raise UserError(f"--keep {options.keep:g}: expected a share of the channels, above 0 and up to 1")
    if options.limit < 1:
        raise UserError(f"--limit {options.limit}: expected at least 1 image")
    if options.device is not None:
        check_device(options.device)
    run_folder = Run.open(options.run)
    weights_file = find_weights(options.run)
    metadata = read_metadata(weights_file)
    about = Description.from_metadata(metadata, weights_file)
    _check_model(about)
    folder = free_folder(options.out, "pruned-{}", "--out")
    quiet()
    batches, notes = labelled_batches(options.run, find_named_images(options.images), about, options.limit)
    tell(notes)

    from longvision.explain.importance import finding, kept_channels, measure_importance
    from longvision.inference.predictor import Predictor
    from longvision.models.pruned_efficientvit import SUFFIX, sliced
    from longvision.models.weights.files import write_weights

    model: Any = Predictor(options.run, options.device).model
    found = measure_importance(model, batches, about.multilabel)
    result = finding(found, options.keep, about.architecture)
    weights, widths = sliced(model.cpu(), kept_channels(model, found, options.keep))
    name = about.architecture.partition(".")[0].removesuffix(SUFFIX) + SUFFIX
    args = {**about.args, "widths": widths}
    described = {**{key: value for key, value in metadata.items() if key != "metrics"}, "architecture": name}
    with user_paths():
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(weights, folder / "model.safetensors", {**described, "args": args})
        _copy_run(run_folder, folder, name, args)
        for file, write in result.files.items():
            write(folder / file)
    print(result.sentence)
    print(f"before: {_cost(about, about.architecture, about.args)}")
    print(f"after:  {_cost(about, name, args)}")
    config, pruned = folder / "config.yaml", folder / "model.safetensors"
    print(f"recover with: {command_line('train', '-c', config, '--model.pretrained', pruned)}")
    print(folder)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="longvision prune",
        description="Makes a smaller EfficientViT out of a run's: measures how much each channel of its queries and "
        "keys, values and MLPs matters to the loss (first-order Taylor importance, arXiv 1906.10771), and leaves the "
        "least important ones out. A new folder gets the model, with which predict, validate and train go on as with a "
        "run's, and what is left of each layer as a drawing and as CSV.",
    )
    parser.add_argument("run", metavar="RUN", help="a folder that `longvision train` made, of efficientvit_m0 to _m5")
    parser.add_argument(
        "images",
        metavar="FILE|FOLDER",
        nargs="*",
        help="images to measure on, in folders named after the classes (default: the run's own training images)",
    )
    parser.add_argument(
        "--keep", metavar="SHARE", type=float, default=0.7, help="of all channels together (default: 0.7)"
    )
    parser.add_argument("--limit", metavar="N", type=int, default=IMAGES, help=f"the most images (default: {IMAGES})")
    parser.add_argument("--out", metavar="FOLDER", help="where the model goes (default: a new folder pruned-N here)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: a CUDA GPU where there is one, else cpu)")
    known, unknown = parser.parse_known_intermixed_args(arguments)  # images may stand behind options
    parser.refuse(unknown)
    return known


def _check_model(about: Description) -> None:
    """Raises UserError for what is no classifier, or no EfficientViT."""
    if about.task != "classification":
        raise UserError(f"{about.source} is a model for {about.task}: classifiers can be pruned")
    if not re.match(r"efficientvit_m\d", about.architecture):
        raise UserError(
            f"{about.source} is a {about.architecture}: efficientvit_m0 to efficientvit_m5 can be pruned, whose heads "
            "may have any width; `longvision explain RUN --method importance` shows what a transformer could do without"
        )


def _copy_run(run: Any, folder: Path, name: str, args: dict[str, Any]) -> None:
    """What else a run's folder has that others read: its configuration, with the weights that training begins with, all
    of which it trains, and what it knows of its data."""
    configuration = run_configuration(run)
    weights = str((folder / "model.safetensors").absolute())
    configuration.model = replace(configuration.model, name=name, args=args, pretrained=weights, finetune="full")
    configuration.save(folder / "config.yaml")
    for file in run.data_files():
        (folder / file.name).write_bytes(file.read_bytes())


def _cost(about: Description, name: str, args: dict[str, Any]) -> str:
    from longvision.models.cost import measure_cost

    cost = measure_cost(name, *about.input.size, num_classes=len(about.classes), in_chans=about.input.channels, **args)
    return f"{cost.parameters:,} parameters, {cost.macs / 1e9:.3f} GMACs"
