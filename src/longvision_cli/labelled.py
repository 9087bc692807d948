"""Images of a run with what they are: its own training images, or others that lie in a folder a class."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from longvision.data.io.listing import spread_evenly
from longvision.data.problems import listing
from longvision.errors import MissingFileError, UnreadableImage, UserError
from longvision.inference.description import Description
from longvision_cli.arguments import ArgumentParser, Words
from longvision_cli.configuration import Configuration, configure
from longvision_cli.notes import tell

BATCH = 32
Batches = Iterator[tuple[Any, Any]]  # images (B, C, H, W), or packed ones, and targets


def run_configuration(run: Any) -> Configuration:
    """As the run was trained last. Raises UserError for a file that does not say it."""
    parser = ArgumentParser()
    return configure(run.configs()[-1:], Words(parser, parser.parse_args([]), [], []), of_run=True)


def labelled_batches(what: str, images: Sequence[Path], about: Description, most: int) -> tuple[Batches, Iterable[str]]:
    """Of at most so many of the images, or where there are none of the training images of the run `what`, spread evenly
    over all, so that they are of every class. All as validation prepares them. -> batches, and what is to be told of
    the set. Raises UserError."""
    if not images:
        return _of_run(what, about, most)
    used = [images[row] for row in spread_evenly(len(images), most)]
    told = [f"{most} of {len(images)} images are used, spread evenly over all: --limit takes another number"]
    return _of_folders(used, about), told if len(used) < len(images) else []


def _of_run(what: str, about: Description, most: int) -> tuple[Batches, Iterable[str]]:
    """Raises UserError where the images are not where they were."""
    from longvision.engine.run import Run
    from longvision.engine.run_data import evaluated_source

    run = Run.open(what)
    configuration = run_configuration(run)
    path = getattr(configuration.data, "path", None)
    if path is not None and not os.path.exists(path):
        raise MissingFileError(
            f"{path}, the data of {run.path}, does not exist: give other images, in folders named after the classes"
        )
    options = configuration.data
    if getattr(options, "pack", False):
        options = replace(options, patch=about.input.patch)  # in training the model says it
    source = evaluated_source(run, options.source(), "train")
    data = options.build(source, about.input.seen)
    data.setup("fit")
    images = data.images("train")
    rows = data.examples("train", most)
    return _batches(rows, lambda row: data.transforms.evaluate(*images[row]), data.transforms.collate), dict.fromkeys(
        source.notes
    )


def _of_folders(images: Sequence[Path], about: Description) -> Batches:
    """What images are is the name of their folder. Raises UserError for one in another folder, and for a
    model whose images have any number of labels."""
    import torch

    from longvision.data.io.images import read_image
    from longvision.types import PackedImages

    if about.multilabel:
        raise UserError(f"{about.source}: its images have any number of labels, which folders do not say")
    names = [path.absolute().parent.name for path in images]
    numbers = {name: number for number, name in enumerate(about.classes)}
    if others := [number for number, name in enumerate(names) if name not in numbers]:
        raise UserError(
            f"{images[others[0]]} lies in a folder {names[others[0]]!r}, which is none of the classes "
            f"({listing(about.classes)}): folders say what images are"
        )

    def sample(row: int) -> tuple[Any, int]:
        return about.input.evaluated(read_image(images[row], about.input.channels)), numbers[names[row]]

    def collate(samples: list[tuple[Any, int]]) -> tuple[Any, Any]:
        tensors, labels = zip(*samples, strict=True)
        in_shapes = about.input.resize == "area"  # of their own
        together = PackedImages.from_images(tensors, about.input.patch) if in_shapes else torch.stack(tensors)
        return together, torch.tensor(labels)

    return _batches(range(len(images)), sample, collate)


def _batches(rows: Sequence[int], sample: Callable[[int], Any], collate: Callable[[list[Any]], Any]) -> Batches:
    """Without images that cannot be read, which are told."""
    unreadable = []
    for at in range(0, len(rows), BATCH):
        samples = []
        for row in rows[at : at + BATCH]:
            try:
                samples.append(sample(row))
            except (UnreadableImage, MissingFileError) as error:
                unreadable.append(str(error))
        if samples:
            yield collate(samples)
    if unreadable:
        tell([f"{len(unreadable)} of {len(rows)} images cannot be read and are left out, the first: {unreadable[0]}"])
