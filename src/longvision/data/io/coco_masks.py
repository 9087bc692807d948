"""COCO's segmentations, polygons or run lengths, as masks."""

from typing import Any

import numpy as np

FAR = 100  # sides of an image, from which a corner of a polygon is no corner
TRIANGLE = 6  # numbers; a polygon of fewer covers nothing, and one of four would be read as a box


def drawn(shape: Any, height: int, width: int) -> np.ndarray:
    """Polygons, run lengths in a list, or COCO's compressed run lengths -> (H, W) of 0 and 1."""
    return mask_tools().decode(run_lengths(shape, height, width))


def run_lengths(shape: Any, height: int, width: int) -> dict[str, Any]:
    """The same -> COCO's compressed run lengths: of a large mask a few bytes."""
    tools = mask_tools()
    if isinstance(shape, list):
        return tools.merge(tools.frPyObjects([polygon for polygon in shape if len(polygon) >= TRIANGLE], height, width))
    return tools.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape


def mask_tools() -> Any:
    try:
        import faster_coco_eval.core.mask as tools
    except ImportError as error:
        raise ImportError("masks of COCO's need faster-coco-eval: pip install 'longvision[dense]'") from error
    return tools


def is_drawable(shape: Any, height: int, width: int) -> bool:
    if isinstance(shape, list):
        most = FAR * max(height, width)
        return bool(shape) and all(
            is_numbers(polygon) and len(polygon) % 2 == 0 and all(abs(value) <= most for value in polygon)
            for polygon in shape
        )
    if not isinstance(shape, dict) or shape.get("size") != [height, width]:
        return False
    counts = shape.get("counts")
    if isinstance(counts, list):
        return all(type(count) is int and count >= 0 for count in counts) and sum(counts) == height * width
    return isinstance(counts, str) and _is_decodable(shape)


def _is_decodable(shape: dict[str, Any]) -> bool:
    try:
        return bool(list(drawn(shape, *shape["size"]).shape) == shape["size"])
    except (ValueError, RuntimeError):
        return False


def is_empty(shape: Any) -> bool:
    """Whether it covers no pixel for certain."""
    if isinstance(shape, list):
        return all(len(polygon) < TRIANGLE for polygon in shape)
    return isinstance(shape["counts"], list) and not sum(shape["counts"][1::2])


def extent(polygons: list[list[float]]) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of polygons of which one at least has a corner."""
    xs, ys = ([polygon[at::2] for polygon in polygons if polygon] for at in (0, 1))
    return min(map(min, xs)), min(map(min, ys)), max(map(max, xs)), max(map(max, ys))


def is_numbers(values: Any, count: int | None = None) -> bool:
    if not isinstance(values, list) or len(values) != (count or len(values)):
        return False
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
