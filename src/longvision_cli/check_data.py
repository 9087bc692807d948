"""`longvision check-data`: whether images and labels are what a recipe expects, and how they look together."""

from typing import Any

from longvision.errors import user_paths
from longvision.text import printable
from longvision_cli.arguments import ArgumentParser, take_apart
from longvision_cli.configuration import add_options, read_recipes
from longvision_cli.folders import free_folder
from longvision_cli.notes import print_notes
from longvision_cli.quiet import quiet

SAMPLES = 20


def run(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="longvision check-data",
        usage="longvision check-data -c RECIPE [--out FOLDER] [--data.path DIR] [--data.… VALUE]",
        description="Runs the checks that `longvision train` runs before its first step, on all splits, looks for "
        "images that are in two splits or under two classes, and draws twenty training samples with their labels. "
        "The first mistake found ends it with one sentence.",
    )
    add_options(parser)
    parser.add_argument("--out", metavar="FOLDER", help="where samples.png goes (default: a new folder data-N here)")
    words = take_apart(parser, arguments)
    configuration = read_recipes(words, "digits")
    folder = free_folder(words.options.out, "data-{}", "--out")
    source = configuration.data.source()
    quiet()
    data = configuration.data.build(source)
    data.setup()
    splits = ("train", "val", "test") if data.has_test else ("train", "val")
    counts = ", ".join(f"{len(data.images(split))} {split}" for split in splits)
    classes = ", ".join(map(printable, data.classes[:12])) + (", …" if len(data.classes) > 12 else "")
    print(f"{printable(data.name)}: {counts} images, {len(data.classes)} classes: {classes}")
    from longvision.data.duplicates import duplicates

    source.notes.extend(duplicates(source))
    print_notes(source)
    sheet = _samples(data)
    with user_paths():
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / "samples.png")
    print(f"no mistake found; {min(SAMPLES, len(data.images('train')))} training samples: {folder / 'samples.png'}")
    return 0


def _samples(data: Any) -> Any:
    """Spread evenly over the training images."""
    from longvision.viz.sheets import contact_sheet

    images = data.images("train")
    rows = data.examples("train", SAMPLES)
    return contact_sheet([_drawn(data, *images[row]) for row in rows], f"{data.name}: some of its training images")


def _drawn(data: Any, image: Any, label: Any) -> Any:
    """A class number, a class map or objects over the image."""
    from longvision.types import Target
    from longvision.viz.overlays import draw_objects, draw_segmentation, titled

    if isinstance(label, int):
        return titled(image, data.classes[label])
    draw: Any = draw_objects if isinstance(label, Target) else draw_segmentation
    return draw(image, {"labels": label}, data.classes, data.info.palette)
