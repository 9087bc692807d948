"""Which methods there are, and where the code of each lies: dotted paths, so that reading the table loads nothing."""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from longvision.errors import UserError
from longvision.names import did_you_mean


@dataclass(frozen=True)
class Option:
    """An option of a method on the command line.

    Args:
        type: makes its value from a word.
        help: what --help says of it.
        example: of its value, where the method has none of its own: it must be given.
    """

    type: Callable[[str], Any]
    help: str
    example: str = ""


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        run: a function (predictor, images, **options) -> `Finding`s, one after the other; the options that were given
            alone are passed.
        help: what it shows.
        options: its own, by their names; methods may share one.
        images: how many images are used at most, where nobody says; 0 for a method that takes none.
        tasks: whose models it can explain; None for any.
        labelled: it takes batches of images and targets in place of images: of those in folders named after the
            classes, or where none are given of the run's own training images.
    """

    run: str
    help: str
    options: dict[str, Option] = field(default_factory=dict)
    images: int = 64
    tasks: frozenset[str] | None = None
    labelled: bool = False


def parse_point(text: str) -> tuple[float, float]:
    """X,Y. Raises ArgumentTypeError, which the command tells."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)", text.replace(" ", ""))
    if match is None:
        raise ArgumentTypeError(f"{text!r} is no point: expected X,Y in pixels from the upper left corner, as 120,80")
    return float(match[1]), float(match[2])


DETR = frozenset({"detr"})
METHODS = {
    "importance": Method(
        "longvision.explain.importance.explain_importance",
        "how much each channel of queries, keys, values and MLPs matters to the loss (arXiv 1906.10771)",
        {"keep": Option(float, "share of the channels that is kept (0.7)")},
        images=256,
        tasks=frozenset({"classification"}),
        labelled=True,
    ),
    "operators": Method(
        "longvision.explain.operators.explain_operators",
        "which operators take a model's time, and how much of it only moves data (EfficientViT, arXiv 2305.07027)",
        images=0,
        tasks=frozenset({"classification"}),
    ),
    "similarity": Method(
        "longvision.explain.similarity.explain_similarity",
        "how alike the attention maps of layers and of heads are (DeepViT, arXiv 2103.11886)",
        {
            "threshold": Option(float, "cosine from which two maps count as similar (0.9)"),
            "heads": Option(int, "of a Vim: groups of channels whose scans are averaged (8)"),
        },
        images=16,
    ),
    "queries": Method(
        "longvision.explain.queries.explain_queries",
        "of a DETR: where the boxes of each query lie over all images (arXiv 2005.12872, figure 7)",
        images=1000,
        tasks=DETR,
    ),
    "encoder-attention": Method(
        "longvision.explain.encoder_attention.explain_encoder",
        "of a DETR: what a point of an image is compared with in the encoder (figure 3)",
        {"point": Option(parse_point, "X,Y in pixels of each image, from its upper left corner", "X,Y")},
        images=16,
        tasks=DETR,
    ),
    "decoder-attention": Method(
        "longvision.explain.decoder_attention.explain_decoder",
        "of a DETR: where the decoder looks for each object that it finds (figure 6)",
        {"score": Option(float, "least score of an object (0.5)")},
        images=16,
        tasks=DETR,
    ),
}


def find_method(name: str) -> Method:
    """Raises UserError for a method that does not exist."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: {did_you_mean(name, METHODS)}")
    return METHODS[name]
