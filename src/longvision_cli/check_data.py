"""`longvision check-data`: whether images and labels are what a recipe expects, and how they look together."""

import itertools
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from longvision.data.problems import NAMED, is_too_many, listing, too_many_unreadable, unreadable
from longvision.errors import MissingFileError, UnreadableImage, UserError, user_paths
from longvision.text import printable
from longvision.types import Split
from longvision_cli.arguments import ArgumentParser, take_apart
from longvision_cli.configuration import add_options, read_recipes
from longvision_cli.folders import free_folder
from longvision_cli.model_names import check_size_of
from longvision_cli.notes import print_notes, tell
from longvision_cli.quiet import quiet

SAMPLES = 20


def run(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="longvision check-data",
        usage="longvision check-data -c RECIPE [--out FOLDER] [--sample N] [--data.path DIR] [--data.… VALUE]",
        description="Runs the checks that `longvision train` runs before its first step, on all splits, looks for "
        "images that are in two splits or under two classes, decodes all images and labels, and draws twenty training "
        "samples with their labels. Where training would refuse the set it ends with one sentence and exit code 2.",
    )
    add_options(parser)
    parser.add_argument("--out", metavar="FOLDER", help="where samples.png goes (default: a new folder data-N here)")
    parser.add_argument(
        "--sample", metavar="N", type=int, help="decode so many images of each split, evenly spread (default: all)"
    )
    words = take_apart(parser, arguments)
    if words.options.sample is not None and words.options.sample < 1:
        raise UserError(f"--sample {words.options.sample}: expected at least 1 image of each split")
    configuration = read_recipes(words, "digits")
    folder = free_folder(words.options.out, "data-{}", "--out")
    check_size_of(configuration)
    source = configuration.data.source()
    quiet()
    data = configuration.data.build(source)
    data.setup()
    splits: tuple[Split, ...] = ("train", "val", "test") if data.has_test else ("train", "val")
    counts = ", ".join(f"{len(data.images(split))} {split}" for split in splits)
    classes = listing([printable(name) for name in data.classes])
    print(f"{printable(data.name)}: {counts} images, {len(data.classes)} classes: {classes}")
    from longvision.data.duplicates import duplicates

    source.notes.extend(duplicates(source))
    print_notes(source)
    decoded = _decode(data, splits, words.options.sample)
    sheet = _samples(data)
    with user_paths():
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / "samples.png")
    print(
        f"no mistake found; {decoded} images decoded; {min(SAMPLES, len(data.images('train')))} training samples: "
        f"{folder / 'samples.png'}"
    )
    return 0


def _decode(data: Any, splits: Iterable[Split], sample: int | None) -> int:
    """As training will; tells of those that cannot be read, -> how many were decoded. Raises UserError where they are
    more than training skips."""
    from tqdm import tqdm

    from longvision.data.unreadable import unreadable_images

    told, refused, count, tolerated = [], [], 0, data.unreadable_share
    for split in splits:
        images = data.images(split)
        rows = range(len(images)) if sample is None else data.examples(split, sample)
        bar = partial(tqdm, total=len(rows), desc=split, unit="image", leave=False, disable=None, delay=2)
        reasons = unreadable_images(images, rows, bar)
        left_out = getattr(images, "left_out", 0)  # a set of one's own may not count them
        bad, total, where = len(reasons) + left_out, len(rows) + left_out, f"{data.name} ({split})"
        named = [*reasons[:NAMED], *[f"{left_out} named before"] * bool(left_out)]
        if reasons and is_too_many(
            bad, total, tolerated
        ):  # the source has judged those before, over all that it drew splits from
            refused.append(str(too_many_unreadable(named, bad, total, where, tolerated)))
        elif reasons:
            told.append(f"{unreadable(named, bad, total, where)}: training skips them")
        count += len(rows) - len(reasons)
    if refused:
        raise UserError("; ".join(refused))
    tell(told)
    return count


def _samples(data: Any) -> Any:
    """Spread evenly over the training images, without those that cannot be read."""
    from longvision.viz.sheets import contact_sheet

    images = data.images("train")
    panels = []
    for row in data.examples("train", SAMPLES):
        with suppress(UnreadableImage, MissingFileError):
            panels.append(_drawn(data, *images[row]))
    return contact_sheet(panels, f"{data.name}: some of its training images")


def _drawn(data: Any, image: Any, label: Any) -> Any:
    """A class number, several classes, a class map or objects over the image."""
    image = data.input.shown(image)
    from longvision.types import Target
    from longvision.viz.overlays import draw_objects, draw_segmentation, titled

    if isinstance(label, int):
        return titled(image, data.classes[label])
    if isinstance(label, list):
        return titled(image, ", ".join(itertools.compress(data.classes, label)) or "nothing")
    draw: Any = draw_objects if isinstance(label, Target) else draw_segmentation
    return draw(image, {"labels": label}, data.classes, data.info.palette)
