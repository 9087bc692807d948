"""The charts of a run. Drawn without a display; matplotlib is imported when one is drawn."""

import functools
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
from PIL import Image

from longvision.text import one_line
from longvision.viz.sheets import short

GOOD, BAD, GREY = "#2a7f4f", "#b3261e", "#666666"
CHARACTERS = 8  # of a title, an inch
LONGEST_LINE = 24  # letters over an example
SMALL_BOX = 1 / 16  # of the image
BOX_KINDS = {
    "small": ("#2a9d4f", f"below 1/{1 / SMALL_BOX:.0f} of the image"),
    "wide": ("#c62828", "larger, wider than tall"),
    "tall": ("#1e63c4", "larger, taller than wide"),
}
MOST_QUERIES = 100


Arguments = ParamSpec("Arguments")


def _names_as_they_are(draw: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """A chart in which "$" opens no formula, and a letter that the font lacks is a box, without a warning each."""

    @functools.wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        import matplotlib

        with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
            for missing in ("Glyph", "Matplotlib currently does not support"):
                warnings.filterwarnings("ignore", message=missing)
            draw(*args, **kwargs)

    return drawn


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    return Figure(figsize=(width, height), layout="constrained")


def _title(figure: Any, words: str) -> str:
    """In lines that a figure is wide enough for."""
    width = int(CHARACTERS * figure.get_figwidth())
    return textwrap.fill(one_line(words), width, max_lines=3, placeholder=" …")


@_names_as_they_are
def draw_curves(
    history: Sequence[dict[str, float]], path: Path, title: str, metric_name: str = "accuracy", words: str = "accuracy"
) -> None:
    """Loss and the metric that decides, over the epochs, training and validation, where there are such."""
    figure = _figure(10, 4)
    figure.suptitle(_title(figure, title))
    epochs = [row["epoch"] for row in history]
    for axes, metric, scale, label in zip(
        figure.subplots(1, 2), ("loss", metric_name), (1, 100), ("loss", f"{words}, %"), strict=True
    ):
        for split, colour in (("train", GREY), ("val", GOOD)):
            values = [scale * row.get(f"{split}/{metric}", np.nan) for row in history]
            if np.isnan(values).all():
                continue
            name = {"train": "training, augmented", "val": "validation"}[split]
            axes.plot(epochs, values, color=colour, label=name, marker="o" if len(epochs) < 3 else None)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


@_names_as_they_are
def draw_tokens(rows: Sequence[dict[str, float]], path: Path, title: str, metric_name: str, words: str) -> None:
    """A metric against the most tokens of an image."""
    from matplotlib.ticker import NullLocator

    figure = _figure(6, 4)
    axes = figure.subplots()
    tokens = [row["tokens"] for row in rows]
    axes.plot(tokens, [100 * row[metric_name] for row in rows], color=GOOD, marker="o")
    axes.set(xscale="log", xlabel="most tokens of an image", ylabel=f"{words}, %", title=_title(figure, title))
    axes.set_xticks(tokens, [f"{number:g}" for number in tokens])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


@_names_as_they_are
def draw_class_metrics(shares: dict[str, float], path: Path, title: str, label: str) -> None:
    """A bar a class, the best above; classes that do not occur (NaN) are named at the end."""
    known = sorted((item for item in shares.items() if item[1] == item[1]), key=lambda item: item[1])
    absent = [short(name) for name, value in shares.items() if value != value]
    figure = _figure(7, 1.2 + 0.28 * max(3, len(known)))
    axes = figure.subplots()
    bars = axes.barh(range(len(known)), [100 * value for _, value in known], color=GOOD)
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set_yticks(range(len(known)), [short(name) for name, _ in known])
    note = f"\nnot in these images: {', '.join(absent[:8])}{', …' if len(absent) > 8 else ''}" if absent else ""
    axes.set(xlim=(0, 110), xlabel=f"{label}{note}", title=_title(figure, title))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


@_names_as_they_are
def draw_confusion(counts_KK: np.ndarray, classes: Sequence[str], path: Path, title: str) -> None:
    """Rows are true classes, columns predicted ones; colour is the share of the row, numbers are images."""
    size = float(np.clip(2.5 + 0.45 * len(classes), 4, 14))
    figure = _figure(size + 0.5, size)
    axes = figure.subplots()
    share_KK = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    image = axes.imshow(share_KK, cmap="Greens", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true", title=_title(figure, title))
    if len(classes) <= 40:
        names = list(map(short, classes))
        axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 4 else 90)
        axes.set_yticks(range(len(names)), names)
    if len(classes) <= 20:
        for row, column in zip(*np.nonzero(counts_KK), strict=True):
            colour = "white" if share_KK[row, column] > 0.5 else "black"
            axes.text(column, row, int(counts_KK[row, column]), ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path, dpi=120)


@_names_as_they_are
def draw_examples(examples: Sequence[tuple[Image.Image, str, str]], path: Path, title: str, columns: int = 8) -> None:
    """Images, each with what the model says, in red where that is wrong and with what it is, else ""."""
    rows = -(-len(examples) // columns)
    figure = _figure(1.6 * columns, 2.0 * rows + 0.5)
    figure.suptitle(_title(figure, title))
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes in grid:
        axes.axis("off")
    for axes, (image, says, truth) in zip(figure.axes, examples, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        lines = [textwrap.fill(one_line(line), LONGEST_LINE) for line in (says, f"is {truth}" if truth else "") if line]
        axes.set_title("\n".join(lines), color=BAD if truth else GOOD, fontsize=9)
    figure.savefig(path, dpi=120)


@_names_as_they_are
def draw_similarity(
    layers_LL: np.ndarray, heads_L: np.ndarray, similar_L: np.ndarray, threshold: float, path: Path, title: str
) -> None:
    """Cosines of attention maps: of all pairs of layers as a heat map, grey where two were not compared; as curves, of
    each layer with the one before and of its heads, and the share of columns that reach the threshold."""
    figure = _figure(11, 4.5)
    figure.suptitle(_title(figure, title))
    heat, curves = figure.subplots(1, 2)
    heat.set_facecolor(GREY)
    image = heat.imshow(layers_LL, cmap="viridis", vmin=min(0.0, float(np.nanmin(layers_LL))), vmax=1)
    figure.colorbar(image, ax=heat, label="cosine of two layers' maps", shrink=0.8)
    heat.set(xlabel="layer", ylabel="layer")
    numbers = range(len(layers_LL))
    curves.plot(numbers[1:], np.diagonal(layers_LL, 1), color=BAD, marker="o", label="cosine with the layer before")
    label = f"share of columns with {threshold:g} or more"
    curves.plot(numbers, similar_L, color=BAD, linestyle="--", marker=".", label=label)
    curves.plot(numbers, heads_L, color=GOOD, marker="o", label="cosine of its heads")
    low = float(np.nanmin([0.0, *np.diagonal(layers_LL, 1), *heads_L]))
    curves.set(xlabel="layer", ylabel="cosine, share", ylim=(low - 0.05, 1.05))
    curves.grid(alpha=0.3)
    curves.legend(frameon=False)
    for axis in (heat.xaxis, heat.yaxis, curves.xaxis):
        axis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=120)


@_names_as_they_are
def draw_queries(boxes_NQ4: np.ndarray, sizes_N2: np.ndarray, path: Path, title: str) -> None:
    """Where the boxes of each query lie in the unit square that every image is; the first 100 queries.

    Args:
        boxes_NQ4: of each image and query the centre, width and height, as shares of the image.
        sizes_N2: height and width of each image, pixels: what is wider than high depends on them.
    """
    images, queries = boxes_NQ4.shape[:2]
    if queries > MOST_QUERIES:
        title = f"{title}, the first {MOST_QUERIES} of {queries}"
    shown = min(queries, MOST_QUERIES)
    columns = math.ceil(math.sqrt(shown))
    rows = -(-shown // columns)
    side = float(np.clip(8 / columns, 1.2, 2.4))
    figure = _figure(max(8.0, side * columns), (side + 0.15) * rows + 1.2)
    figure.suptitle(_title(figure, title))
    kind_NQ = box_kinds(boxes_NQ4, sizes_N2)
    size = float(np.clip(600 * side / images, 1, 20))
    for query, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if query >= shown:
            axes.axis("off")
            continue
        for name, (colour, _) in BOX_KINDS.items():
            x, y = boxes_NQ4[kind_NQ[:, query] == name, query, :2].T
            axes.scatter(x, y, size, colour, linewidths=0)
        axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
        axes.set_title(f"query {query}", fontsize=8, color=GREY, pad=2)
    labels = [
        (figure.axes[0].scatter([], [], 30, colour), f"{name}: {words}") for name, (colour, words) in BOX_KINDS.items()
    ]
    figure.legend(*zip(*labels, strict=True), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def box_kinds(boxes_NQ4: np.ndarray, sizes_N2: np.ndarray) -> np.ndarray:
    """(N, Q): "small", "wide" or "tall"."""
    width_NQ, height_NQ = boxes_NQ4[..., 2], boxes_NQ4[..., 3]
    wide_NQ = width_NQ * sizes_N2[:, 1:] >= height_NQ * sizes_N2[:, :1]
    return np.where(width_NQ * height_NQ < SMALL_BOX, "small", np.where(wide_NQ, "wide", "tall"))


@_names_as_they_are
def draw_widths(kinds: Mapping[str, Sequence[tuple[str, int, int]]], path: Path, title: str) -> None:
    """For each kind of channels a row of bars, (layer, its channels, how many are left): grey what there is, green what
    is left, with its share in percent."""
    figure = _figure(max(6.0, 1.5 + 0.45 * max(map(len, kinds.values()))), 0.8 + 2.4 * len(kinds))
    figure.suptitle(_title(figure, title))
    for axes, (kind, bars) in zip(figure.subplots(len(kinds), 1, squeeze=False)[:, 0], kinds.items()):
        names, whole, left = zip(*bars, strict=True)
        axes.bar(range(len(bars)), whole, color="#d9d9d9")
        drawn = axes.bar(range(len(bars)), left, color=GOOD)
        shares = [f"{100 * few / many:.0f}" for few, many in zip(left, whole, strict=True)]
        axes.bar_label(drawn, shares, fontsize=8, padding=1)
        axes.set_xticks(range(len(bars)), names, rotation=90 if len(bars) > 12 else 30, ha="right", fontsize=8)
        axes.set(ylabel=kind, ylim=(0, 1.15 * max(whole)))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


@_names_as_they_are
def draw_times(shares: Sequence[tuple[str, float, bool]], path: Path, title: str) -> None:
    """A bar for each kind of work, (its name, its share of the time, whether memory bounds it), the longest above."""
    figure = _figure(7, 1.2 + 0.32 * max(3, len(shares)))
    axes = figure.subplots()
    names, values, bound = zip(*reversed(shares), strict=True)
    colours = [BAD if by_memory else GOOD for by_memory in bound]
    bars = axes.barh(range(len(names)), [100 * value for value in values], color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="share of the time, %; red: bound by memory", title=_title(figure, title))
    axes.set_xlim(0, 112 * max(values))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
