"""`longvision predict`: what is in images, as a table, as JSON, as masks and as pictures."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longvision_cli.arguments import ArgumentParser
from longvision_cli.quiet import quiet


def run(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="longvision predict",
        description="Says what is in images. A classifier prints a table and draws a picture; a run of segmentation or "
        "detection fills a folder: each input beside its prediction, masks as PNG with a palette, objects as COCO "
        "JSON. Files that are no images, or too large for the memory there is, are named, counted and skipped; the "
        "exit code is 1 when none was good.",
    )
    parser.add_argument("run", metavar="RUN", help="a folder that `longvision train` made")
    parser.add_argument("images", metavar="FILE|FOLDER", nargs="+", help="images, or folders that are searched")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table, and write no file")
    parser.add_argument(
        "--picture", metavar="PNG", help="of a classifier: where its picture goes (default: a new predictions-N.png)"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="of a dense task: where its files go (default: a new folder predictions-N here)"
    )
    parser.add_argument(
        "--window", metavar="PIXELS", type=int, help="of a segmentation: go over the picture in windows of this side"
    )
    parser.add_argument("--threshold", type=float, help="of a detection: least score that is drawn and counted (0.5)")
    options = parser.parse_args(arguments)
    quiet()

    from longvision.data.io.images import find_images
    from longvision.engine.run import Run
    from longvision.inference.predictor import load_predictor
    from longvision_cli.answers import ANSWERS

    if options.window is not None and options.window < 1:
        raise ValueError(f"--window {options.window}: expected pixels, at least 1")
    predictor = load_predictor(Run.open(options.run).trained_weights(), options.window)
    answer = ANSWERS[type(predictor).__name__](predictor, options)
    paths = find_images(options.images)
    bad: list[str] = []
    with _with_progress(paths) as steps:
        for prediction in _predictions(predictor, steps, bad):
            answer.add(prediction)
    for reason in bad[:10]:
        print(f"longvision predict: skipped: {reason}", file=sys.stderr)
    if bad:
        print(f"longvision predict: {len(bad)} of {len(paths)} files have no answer", file=sys.stderr)
    if len(bad) == len(paths) and not options.json:
        return 1
    answer.finish()
    return 1 if len(bad) == len(paths) else 0


def _predictions(predictor: Any, paths: Any, bad: list[str]) -> Iterator[Any]:
    """What is said of each picture; why there is nothing of some goes into `bad`."""
    from longvision.benchmark.memory import is_out_of_memory, limit_memory
    from longvision.data.io.images import UnreadableImage

    limit_memory()  # else the system would end the command, and say nothing
    for path in paths:
        try:
            yield predictor.predict(path)
        except UnreadableImage as error:
            bad.append(str(error))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            bad.append(f"{path} {_size(path)}is too large for the memory there is: {predictor.if_too_large}")


def _size(path: Path) -> str:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return f"({image.width}x{image.height} pixels) "
    except OSError:
        return ""


def _with_progress(paths: list[Path]) -> Any:
    from tqdm import tqdm

    return tqdm(paths, unit="image", leave=False, disable=None, delay=2)
