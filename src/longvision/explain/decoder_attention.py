"""Where a DETR looks for each object it finds: its decoder's cross-attention (arXiv 2005.12872, figure 6)."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import from_numpy
from torchvision.ops import box_convert

from longvision.errors import UserError
from longvision.explain.detr import Decoded, decoded
from longvision.explain.finding import Finding, as_json
from longvision.inference.predictor import Predictor
from longvision.viz.attention import Marked, draw_attention

MOST = 12  # objects in a drawing


def explain_decoder(predictor: Predictor, images: Sequence[Path], score: float = 0.5) -> Iterator[Finding]:
    """For `longvision explain`: of each object that scores at least `score`, the surest one where none does, what its
    query attends to in the decoder's last layer, averaged over heads. Raises UserError for a score that is none."""
    if not 0 <= score <= 1:
        raise UserError(f"--score {score:g}: expected a share from 0 to 1")
    layers: Any = predictor.model.model.model.decoder.layers  # type: ignore[union-attr]
    for number, path in enumerate(images):
        found = decoded(predictor, path, layers[-1].encoder_attn, lambda map_1HQM: map_1HQM[0].mean(0).cpu())
        objects = objects_of(found, predictor.classes, score)
        name = f"{number + 1:03}-{path.stem}-decoder"
        counted = sum(one["score"] >= score for one in objects)
        said = f"{counted or 'no'} object{'' if counted in (0, 1) else 's'} with a score of at least {score:g}"
        if not counted:
            said += f": the surest, {objects[0]['class']} at {objects[0]['score']:.2f}, is shown"
        elif counted > MOST:
            said += f": the surest {MOST} are drawn"
        maps = {f"{one['class']} {one['score']:.2f}, query {one['query']}": one["attention"] for one in objects[:MOST]}
        marks = [Marked(tuple(one["box"]), predictor.description.palette[one["label"]]) for one in objects[:MOST]]
        yield Finding(
            f"{path.name}: {said}",
            {
                f"{name}.png": partial(
                    draw_attention, found.image, maps, found.cells.size, title=f"{path.name}: {said}", marks=marks
                ),
                f"{name}.json": as_json(
                    {"image": str(path), "cell_size": found.cells.size}
                    | {"objects": [{**one, "attention": np.round(one["attention"], 6).tolist()} for one in objects]}
                ),
            },
        )


def objects_of(found: Decoded, classes: Sequence[str], score: float) -> list[dict[str, Any]]:
    """The queries that found something, the surest first, one at least: "query", "class", "label", "score", "box" (x1,
    y1, x2, y2 in the image's pixels) and "attention", of each cell of the map."""
    order = np.argsort(-found.scores_Q, kind="stable")
    sure = [int(query) for query in order if found.scores_Q[query] >= score] or [int(order[0])]
    height, width = found.cells.image
    corners_Q4 = box_convert(from_numpy(found.boxes_Q4), "cxcywh", "xyxy").numpy() * [width, height, width, height]
    corners_Q4 = np.clip(corners_Q4, 0, [width, height, width, height])
    return [
        {
            "query": query,
            "class": classes[found.labels_Q[query]],
            "label": int(found.labels_Q[query]),
            "score": round(float(found.scores_Q[query]), 4),
            "box": np.round(corners_Q4[query], 1).tolist(),
            "attention": found.kept[query].reshape(found.cells.grid).float().numpy(),
        }
        for query in sure
    ]
