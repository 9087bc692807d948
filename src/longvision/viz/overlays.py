"""What predictions and labels look like: classes and objects drawn over their image."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from longvision.types import IGNORE, Colour, Detections, Target
from longvision.viz.sheets import WHITE, Line, fitted, font_of, line_height, short, side_by_side, viewable

OVERLAY = 0.55  # how much of the colour covers the image

Box = tuple[int, int, int, int]  # left, top, right, bottom
Objects = Detections | Target


def draw_segmentation(
    image: Image.Image,
    masks: Mapping[str, np.ndarray],
    classes: Sequence[str],
    palette: Sequence[Colour],
    scores: Mapping[int, float] | None = None,
) -> Image.Image:
    """The image beside itself under each mask; below them the classes and their pixels.

    Args:
        masks: by their titles, such as "prediction" and "truth": class numbers, uint8, of the image's size; 255 is
            ignored and drawn white.
        scores: of class numbers, said in the legend.
    """
    for title, mask in masks.items():
        _check_mask(title, mask, image, len(classes))
    shown = viewable(image)
    panels = {"image": shown} | {title: _coloured(shown, mask, palette) for title, mask in masks.items()}
    return side_by_side(panels, _pixel_legend(list(masks.values()), classes, palette, scores or {}))


def draw_objects(
    image: Image.Image,
    objects: Mapping[str, Objects],
    classes: Sequence[str],
    palette: Sequence[Colour],
    threshold: float = 0.5,
) -> Image.Image:
    """The image beside itself under each set of objects; below them the classes and how many there are.

    Args:
        objects: by their titles.
        threshold: of the scores, below which nothing is drawn.
    """
    shown = viewable(image)
    panels, labels = {"image": shown}, []
    for title, some in objects.items():
        above = _above(some, threshold)
        limit = f" above {threshold:.2f}" if isinstance(some, Detections) else ""
        drawn = _with_objects(shown, _scaled(above, image.size, shown.size), classes, palette)
        panels[f"{title}: {_counted(above)}{limit}"] = drawn
        labels.append(np.asarray(above.labels))
    return side_by_side(panels, _object_legend(labels, classes, palette))


def titled(image: Image.Image, title: str) -> Image.Image:
    """The image under a line of text."""
    return side_by_side({short(title): viewable(image)}, [])


def _mask_at(mask_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(mask_HW.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))


def _edges(mask_HW: np.ndarray) -> np.ndarray:
    """(H, W) -> bool (H, W): the pixels beside one of another number."""
    down, right = mask_HW[1:] != mask_HW[:-1], mask_HW[:, 1:] != mask_HW[:, :-1]
    edges = np.zeros(mask_HW.shape, bool)
    edges[1:] |= down
    edges[:-1] |= down
    edges[:, 1:] |= right
    edges[:, :-1] |= right
    return edges


# -- classes of pixels ------------------------------------------------------------------------------------------------


def _check_mask(name: str, mask_HW: np.ndarray, image: Image.Image, classes: int) -> None:
    if mask_HW.shape != (image.height, image.width):
        raise ValueError(
            f"the {name} is {mask_HW.shape}, its image {(image.height, image.width)}: scale it to the image first"
        )
    wrong = np.unique(mask_HW[(mask_HW >= classes) & (mask_HW != IGNORE)])
    if len(wrong):
        raise ValueError(f"the {name} has class {wrong[0]}: expected 0 to {classes - 1}, or {IGNORE} for ignored")


def _coloured(shown: Image.Image, mask_HW: np.ndarray, palette: Sequence[Colour]) -> Image.Image:
    """Each class in its colour, full at its border, so that thin things and neighbours of one shade stay visible."""
    colours = np.full((256, 3), 255, np.float32)
    colours[: len(palette)] = palette
    mask = _mask_at(mask_HW, shown.size)
    share_HW1 = np.where(_edges(mask), 1, OVERLAY).astype(np.float32)[..., None]
    mixed = share_HW1 * colours[mask] + (1 - share_HW1) * np.asarray(shown)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _pixel_legend(
    masks: Sequence[np.ndarray], classes: Sequence[str], palette: Sequence[Colour], scores: Mapping[int, float]
) -> list[Line]:
    """The classes that occur, the most frequent of the first mask first, with their shares of the pixels."""
    counts = [np.bincount(mask.ravel(), minlength=256) for mask in masks]
    colours, names = dict(enumerate(palette)) | {IGNORE: WHITE}, dict(enumerate(classes)) | {IGNORE: "ignored"}
    occurring = sorted(np.flatnonzero(sum(counts)).tolist(), key=lambda k: [-count[k] for count in counts])
    lines: list[Line] = []
    for k in occurring:
        shares = [_percent(count[k] / mask.size) for count, mask in zip(counts, masks, strict=True)]
        score = f", score {scores[k]:.2f}" if k in scores else ""
        lines.append((colours[k], _with_truth(short(names[k]), shares) + score))
    return lines


def _percent(share: float) -> str:
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _with_truth(name: str, shares: Sequence[str]) -> str:
    return f"{name}  {shares[0]}" + (f" (truth {shares[1]})" if len(shares) > 1 else "")


# -- objects ----------------------------------------------------------------------------------------------------------


def _above(objects: Objects, threshold: float) -> Objects:
    """NumPy arrays; of detections without those that score less, the surest first."""
    objects = objects.numpy()
    if isinstance(objects, Target):
        return objects
    order = np.argsort(-objects.scores, kind="stable")
    return objects.select(order[objects.scores[order] >= threshold])


def _counted(objects: Objects) -> str:
    count = len(objects)
    return f"{count or 'no'} object{'' if count == 1 else 's'}"


def _scaled(objects: Objects, size: tuple[int, int], shown: tuple[int, int]) -> Objects:
    """From the image's pixels to those that are shown; (width, height) both."""
    scale = np.array(shown, np.float64) / size
    return replace(objects, boxes=objects.boxes.reshape(-1, 4) * np.tile(scale, 2))


def _with_objects(
    shown: Image.Image, objects: Objects, classes: Sequence[str], palette: Sequence[Colour]
) -> Image.Image:
    """Masks below, then boxes, then labels: the surest of each on top."""
    labels = objects.labels.tolist()
    if objects.masks is not None:
        shown = _with_masks(shown, objects.masks, [palette[label] for label in labels])
    panel = shown.copy()
    draw = ImageDraw.Draw(panel)
    width = max(2, round(max(panel.size) / 350))
    corners = np.array([panel.width - 1, panel.height - 1] * 2)
    boxes = [tuple(box) for box in np.clip(objects.boxes.round(), 0, corners).astype(int).tolist()]
    for box, label in reversed(list(zip(boxes, labels, strict=True))):
        draw.rectangle(box, outline=palette[label], width=width)
    scores = objects.scores.tolist() if isinstance(objects, Detections) else [None] * len(labels)
    taken: list[Box] = []
    for box, label, score in zip(boxes, labels, scores, strict=True):
        _draw_label(draw, panel.size, box, classes[label], score, palette[label], taken)
    return panel


def _with_masks(shown: Image.Image, masks_NHW: Any, colours: Sequence[Colour]) -> Image.Image:
    """The masks may be drawn only now: one at a time."""
    pixels = np.asarray(shown).astype(np.float32)
    for row, colour in reversed(list(enumerate(colours))):
        mask = _mask_at(np.asarray(masks_NHW[row]), shown.size).astype(bool)
        pixels[mask] = OVERLAY * np.array(colour) + (1 - OVERLAY) * pixels[mask]
        pixels[mask & _edges(mask)] = colour
    return Image.fromarray(pixels.round().astype(np.uint8))


def _draw_label(
    draw: ImageDraw.ImageDraw,
    panel: tuple[int, int],
    box: Box,
    name: str,
    score: float | None,
    colour: Colour,
    taken: list[Box],
) -> None:
    """A filled tag at the box, inside the panel, where it hides the least of the tags before it."""
    font = font_of((panel[0] * panel[1]) ** 0.5 / 45)
    tail = "" if score is None else f" {score:.2f}"
    text = (fitted(short(name), panel[0] - 6 - font.getlength(tail), font) + tail).strip()
    width, height = round(font.getlength(text)) + 6, line_height(font)
    left, top, right, bottom = box
    places = [(left, top - height), (left, top), (left, bottom), (left, bottom - height)]
    places += [(right - width, y) for _, y in places]
    inside = [(min(max(x, 0), panel[0] - width), min(max(y, 0), panel[1] - height)) for x, y in places]
    tags = [(x, y, x + width, y + height) for x, y in inside]
    tag = min(tags, key=lambda tag: sum(_overlap(tag, other) for other in taken))
    taken.append(tag)
    draw.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=colour)
    draw.text((tag[0] + 3, tag[1]), text, _readable_on(colour), font)


def _overlap(a: Box, b: Box) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _readable_on(colour: Colour) -> Colour:
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else WHITE


def _object_legend(labels: Sequence[np.ndarray], classes: Sequence[str], palette: Sequence[Colour]) -> list[Line]:
    counts = [np.bincount(of, minlength=len(classes)) for of in labels]
    occurring = sorted(np.flatnonzero(sum(counts)).tolist(), key=lambda k: [-count[k] for count in counts])
    return [
        (palette[k], _with_truth(short(classes[k]), [f"× {counts[0][k]}", *(str(count[k]) for count in counts[1:])]))
        for k in occurring
    ]
