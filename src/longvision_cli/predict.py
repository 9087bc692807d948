"""`longvision predict`: a table, JSON or a picture of what is in images."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvision_cli.arguments import ArgumentParser
from longvision_cli.quiet import quiet

if TYPE_CHECKING:
    from PIL.Image import Image

Top = list[tuple[str, float]]  # class, probability
Row = tuple[str, Top]
PICTURED = 16  # images in the picture at most


def run(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="longvision predict",
        description="Says what is in images. Files that are no images are named, counted and skipped; "
        "the exit code is 1 when none was good.",
    )
    parser.add_argument("run", metavar="RUN", help="a folder that `longvision train` made")
    parser.add_argument("images", metavar="FILE|FOLDER", nargs="+", help="images, or folders that are searched")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table, and draw no picture")
    parser.add_argument(
        "--picture", metavar="PNG", help="where the picture goes (default: a new predictions-N.png here)"
    )
    options = parser.parse_args(arguments)
    quiet()
    picture = _free_name(options.picture)

    from longvision.data.images import UnreadableImage, find_images
    from longvision.tasks.pictures import draw_predictions
    from longvision.tasks.prediction import Predictor
    from longvision.tasks.runs import Run

    predictor = Predictor(Run.open(options.run).trained_weights())
    paths = find_images(options.images)
    rows: list[Row] = []
    pictured: list[tuple[Image, str, Top]] = []
    bad = []
    for path in _with_progress(paths):
        try:
            prediction = predictor.predict(path)
        except UnreadableImage as error:
            bad.append(str(error))
            continue
        rows.append((prediction.name, prediction.top))
        if len(pictured) < PICTURED:  # thousands of photographs would not fit into memory
            prediction.image.thumbnail((512, 512))
            pictured.append((prediction.image, Path(prediction.name).name, prediction.top))
    for reason in bad[:10]:
        print(f"longvision predict: skipped: {reason}", file=sys.stderr)
    if bad:
        print(f"longvision predict: {len(bad)} of {len(paths)} files are not images", file=sys.stderr)
    if options.json:
        print(json.dumps([_as_json(row) for row in rows], indent=2))
    elif rows:
        _print_table(rows)
        draw_predictions(pictured, picture)
        more = f" (the first {PICTURED} of {len(rows)})" if len(rows) > PICTURED else ""
        print(f"picture: {picture}{more}")
    return 0 if rows else 1


def _as_json(row: Row) -> dict[str, Any]:
    name, top = row
    return {"file": name, "top": [{"class": label, "probability": share} for label, share in top]}


def _free_name(asked: str | None) -> Path:
    """Where the picture may go. Raises FileExistsError: nothing is overwritten."""
    if asked is not None:
        if Path(asked).exists():
            raise FileExistsError(f"{asked} exists already and is not overwritten: give another --picture")
        if not Path(asked).absolute().parent.is_dir():
            raise FileNotFoundError(f"--picture {asked}: its folder does not exist, make it first")
        return Path(asked)
    number = 1
    while (path := Path(f"predictions-{number}.png")).exists():
        number += 1
    return path


def _with_progress(paths: list[Path]) -> Iterable[Path]:
    from tqdm import tqdm

    return tqdm(paths, unit="image", leave=False, disable=None, delay=2)


def _print_table(rows: list[Row]) -> None:
    """One line an image: the file, below the folder that all have in common, and its most likely classes."""
    folder = os.path.commonpath([os.path.dirname(name) for name, _ in rows]) if len(rows) > 1 else ""
    if folder:
        print(f"in {folder}")
    names = [os.path.relpath(name, folder) if folder else name for name, _ in rows]
    cells = [[f"{label} {100 * share:.1f} %" for label, share in top] for _, top in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for name, row in zip(names, cells):
        print(f"{name:<{max(map(len, names))}}  " + "  ".join(f"{c:<{n}}" for c, n in zip(row, widths)).rstrip())
