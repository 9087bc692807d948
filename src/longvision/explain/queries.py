"""Where the boxes of each query of a DETR lie over a set of images (arXiv 2005.12872, figure 7)."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from longvision.data.problems import counted
from longvision.explain.detr import Decoded, decoded
from longvision.explain.finding import Finding, as_csv
from longvision.inference.predictor import Predictor
from longvision.types import Size
from longvision.viz.charts import draw_queries


def explain_queries(predictor: Predictor, images: Sequence[Path]) -> Iterator[Finding]:
    """For `longvision explain`: all boxes of each query, whatever they score."""
    boxes: list[np.ndarray] = []
    sizes: list[Size] = []
    rows: list[dict[str, object]] = []
    for path in images:  # the images themselves would fill the memory
        found = decoded(predictor, path)
        boxes.append(found.boxes_Q4)
        sizes.append(found.cells.image)
        rows += _rows(path, found, predictor.classes)
    boxes_NQ4, sizes_N2 = np.stack(boxes), np.array(sizes)
    title = f"{predictor.description.architecture}: centres of each query's boxes, {counted(len(boxes), 'image')}"
    yield Finding(
        _sentence(boxes_NQ4),
        {
            "queries.csv": as_csv(rows),
            "queries.png": partial(draw_queries, boxes_NQ4, sizes_N2, title=title),
        },
    )


def spread(centres_NQ2: np.ndarray) -> tuple[float, float]:
    """How far centres lie from the mean of their query, and the queries' means from the mean of all: the root of the
    mean square distance, in sides of the image."""
    means_Q2 = centres_NQ2.mean(0)
    apart = [centres_NQ2 - means_Q2, means_Q2 - means_Q2.mean(0)]
    within, between = (float(np.sqrt(np.square(one).sum(-1).mean())) for one in apart)
    return within, between


def _sentence(boxes_NQ4: np.ndarray) -> str:
    within, between = spread(boxes_NQ4[..., :2])
    images, queries = boxes_NQ4.shape[:2]
    return (
        f"over {counted(images, 'image')}, the boxes of one of {queries} queries lie {within:.3f} sides of the image "
        f"around their mean, and the queries' means {between:.3f} around theirs"
    )


def _rows(path: Path, found: Decoded, classes: Sequence[str]) -> Iterator[dict[str, object]]:
    for query, (x, y, width, height) in enumerate(found.boxes_Q4):
        yield {
            "image": str(path), "query": query, "x": f"{x:.5f}", "y": f"{y:.5f}", "width": f"{width:.5f}",
            "height": f"{height:.5f}", "class": classes[found.labels_Q[query]],
            "score": f"{found.scores_Q[query]:.5f}",
        }  # fmt: skip
