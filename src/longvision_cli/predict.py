"""`longvision predict`: what is in images, as a table, as JSON and as files."""

import argparse
import json
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from longvision.data.io.listing import ending, has_image_name
from longvision.data.problems import counted, listing
from longvision.errors import UnreadableImage, UserError, user_paths
from longvision.text import one_line, printable
from longvision_cli.arguments import ArgumentParser
from longvision_cli.folders import free_folder
from longvision_cli.quiet import quiet

NAMED = 10  # images without a result that are named
TASK_OPTIONS = {
    "window": "only a segmentation has windows",
    "threshold": "only objects, and labels of which an image may have any number, have scores to compare",
    "detections": "only detectors find objects",
    "tokens": "only a classifier's images may have any size",
    "budget-ms": "only a classifier's images may have any size",
}


def run(arguments: list[str]) -> int:
    options = _parse(arguments)
    from longvision.data.io.depth import has_other_pages, pages_note
    from longvision.data.io.images import find_images
    from longvision.files import find_weights
    from longvision.inference.description import read_description
    from longvision.inference.device import check_device
    from longvision.registry import load, task_entry

    # All mistakes that can be told without torch are told before it is loaded.
    if options.device is not None:
        check_device(options.device)
    description = read_description(find_weights(options.run))
    writer = load(task_entry(description.task).output)
    given = {name: vars(options)[name.replace("-", "_")] for name in TASK_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    for name in set(given) - writer.options - ({"threshold"} if description.multilabel else set()):
        raise UserError(
            f"--{name} means nothing to {options.run}, a model for {description.task}: {TASK_OPTIONS[name]}"
        )
    if options.batch is not None and options.batch < 1:
        raise UserError(f"--batch {options.batch}: expected at least 1")
    inference = None
    if "window" in given:
        if given["window"] < 1:
            raise UserError(f"--window {given['window']}: expected pixels, at least 1")
        inference = replace(description.inference, window=given.pop("window"), stride=None)
    detections = given.pop("detections", None)
    if detections is not None and detections < 1:
        raise UserError(f"--detections {detections}: expected at least 1")
    tokens, budget_ms = (given.pop(name, None) for name in ("tokens", "budget-ms"))
    for name, value in {"tokens": tokens, "budget-ms": budget_ms}.items():
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value:g}: expected a number above 0")
    if tokens is not None and budget_ms is not None:
        raise UserError("--tokens and --budget-ms both say how large an image is: give one of them")
    if options.json and options.out is not None:
        raise UserError("--json writes no file: give --json or --out, not both")
    folder = None if options.json else free_folder(options.out, "predictions-{}", "--out")
    output = writer(description.classes, folder, **given)
    quiet()
    images = find_images(options.images)

    from longvision.benchmark.memory import limit_memory
    from longvision.inference.predictor import Predictor

    sizes = {"tokens": tokens, "budget_ms": budget_ms}
    predictor = Predictor(options.run, options.device, options.batch, inference, detections=detections, **sizes)
    if predictor.milliseconds is not None:
        size = predictor.description.input.most_patches
        told = f"at most {size} tokens an image, which take {predictor.milliseconds:.3g} ms"
        print(f"longvision predict: note: {told}", file=sys.stderr)
    limit_memory()  # else the system would end the command without a word
    failed: list[tuple[Path, Exception]] = []
    paged: list[str] = []
    for result in predictor.stream(_with_progress(images), lambda path, error: failed.append((Path(str(path)), error))):
        with user_paths():
            output.add(result)
        if has_other_pages(result.name, description.input.channels):
            paged.append(Path(result.name).name)
    if paged:
        print(f"longvision predict: note: {one_line(pages_note(paged, len(images)))}", file=sys.stderr)
    aside = [path for path, error in failed if _is_no_image(path, error) and str(path) not in options.images]
    skipped = [(path, error) for path, error in failed if path not in aside]
    _tell_aside(aside)
    return _report(output, skipped, len(images) - len(aside), folder)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="longvision predict",
        description="Says what is in images: prints a table, or JSON, and fills a folder. Of a classifier that holds a "
        "sheet of the first images with their likeliest classes; of a segmentation or detection each image beside its "
        "prediction, masks as PNG with a palette, objects as COCO JSON. Files that are no images, or too large for the "
        "memory there is, and drawings that fail are named and counted, the others are made, and the exit code is 1.",
    )
    parser.add_argument("run", metavar="RUN", help="a folder that `longvision train` made, or its model.safetensors")
    parser.add_argument("images", metavar="FILE|FOLDER", nargs="+", help="images, or folders that are searched")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table, and write no file")
    parser.add_argument("--out", metavar="FOLDER", help="where the files go (default: a new folder predictions-N here)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: a CUDA GPU where there is one, else cpu)")
    parser.add_argument("--batch", metavar="N", type=int, help="images, or windows, that the model sees at once")
    parser.add_argument(
        "--window", metavar="PIXELS", type=int, help="of a segmentation: go over each image in windows of this side"
    )
    parser.add_argument(
        "--detections", metavar="N", type=int, help="of a detection: the most objects of an image (the run's, as 100)"
    )
    parser.add_argument(
        "--tokens",
        metavar="N",
        type=int,
        help="of a classifier that takes any size: images keep their proportions and have at most N patches",
    )
    parser.add_argument(
        "--budget-ms",
        metavar="MS",
        type=float,
        help="the same, with as many patches as take so many ms an image, at most four times a training image's",
    )
    parser.add_argument(
        "--threshold", type=float, help="of objects, and of any number of labels: least score that counts (0.5)"
    )
    if any(word.split("=")[0] == "--picture" for word in arguments):
        raise UserError("--picture is now --out, which names a folder")
    return parser.parse_args(arguments)


def _with_progress(paths: list[Path]) -> Any:
    from tqdm import tqdm

    return tqdm(paths, unit="image", leave=False, disable=None, delay=2)


def _is_no_image(path: Path, error: Exception) -> bool:
    return isinstance(error, UnreadableImage) and bool(ending(str(path))) and not has_image_name(str(path))


def _tell_aside(paths: list[Path]) -> None:
    """What lay in a folder of images and is of another type."""
    if paths:
        print(
            f"longvision predict: note: {counted(len(paths), 'file')} of no image type: not used "
            f"({one_line(listing(list(map(str, paths))))})",
            file=sys.stderr,
        )


def _report(output: Any, skipped: list[tuple[Path, Exception]], images: int, folder: Path | None) -> int:
    """Print what there is, and what there is not; -> the exit code."""
    if folder is None:
        print(json.dumps(output.as_json(), indent=2))
    elif output.rows:
        output.end()
        _print_table(*zip(*output.rows, strict=True))
        print(*map(one_line, output.notes), f"{output.about}: {folder}", sep="\n")
    for line in output.remarks():
        print(f"longvision predict: note: {one_line(line)}", file=sys.stderr)
    for path, error in skipped[:NAMED]:
        reason = str(error) if isinstance(error, UserError) else f"{path}: {type(error).__name__}: {error}"
        print(f"longvision predict: skipped: {one_line(reason)}", file=sys.stderr)
    if skipped:
        print(f"longvision predict: no result for {len(skipped)} of {counted(images, 'file')}", file=sys.stderr)
    for reason in output.failed[:NAMED]:
        print(f"longvision predict: {one_line(reason)}", file=sys.stderr)
    if output.failed:
        print(f"longvision predict: drawings or files that could not be made: {len(output.failed)}", file=sys.stderr)
    for bug in [error for _, error in skipped if not isinstance(error, UserError)][:1]:
        traceback.print_exception(bug)
    return 0 if output.rows and not skipped and not output.failed else 1


def _print_table(files: tuple[str, ...], cells: tuple[list[str], ...]) -> None:
    """One line an image: the file, below the folder that all have in common, and what is in it."""
    names = list(files)
    if len({os.path.isabs(name) for name in names}) > 1:  # some typed one way, some the other
        names = [os.path.abspath(name) for name in names]
    folder = os.path.commonpath([os.path.dirname(name) for name in names]) if len(names) > 1 else ""
    if folder:
        print(f"in {printable(folder)}")
        names = [os.path.relpath(name, folder) for name in names]
    columns = max(map(len, cells))
    rows = [[*map(printable, [name, *row]), *[""] * (columns - len(row))] for name, row in zip(names, cells)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
