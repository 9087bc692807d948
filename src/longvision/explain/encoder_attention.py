"""What a place of the image is compared with: self-attention of a DETR's encoder (arXiv 2005.12872, figure 3)."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from longvision.explain.detr import Cells, decoded
from longvision.explain.finding import Finding, as_json
from longvision.inference.predictor import Predictor
from longvision.viz.attention import draw_attention

Point = tuple[float, float]


def explain_encoder(predictor: Predictor, images: Sequence[Path], point: Point) -> Iterator[Finding]:
    """For `longvision explain`: of each image the row of the last layer's map that belongs to the point, averaged over
    heads. Raises UserError for a point that lies outside of an image."""
    layers: Any = predictor.model.model.model.encoder.layers  # type: ignore[union-attr]
    for number, path in enumerate(images):
        found = decoded(predictor, path, layers[-1].self_attn, lambda map_1HMM: map_1HMM[0].mean(0).cpu())
        row, column = found.cells.at(*point)
        map_hw = row_of(found.kept, found.cells, row, column)
        name = f"{number + 1:03}-{path.stem}-encoder"
        title = f"{path.name}: what {point[0]:g},{point[1]:g} attends to, encoder layer {len(layers)} of {len(layers)}"
        peak = divmod(int(map_hw.argmax()), map_hw.shape[1])
        yield Finding(
            f"{path.name}: {point[0]:g},{point[1]:g} attends most to {_place(found.cells, *peak)}, "
            f"{map_hw.max():.1%} of its attention there and {map_hw[row, column]:.1%} on its own cell",
            {
                f"{name}.png": partial(
                    draw_attention, found.image, {"": map_hw}, found.cells.size, title=title, point=point
                ),
                f"{name}.json": as_json(
                    {"image": str(path), "point": list(point), "cell": [row, column], "cell_size": found.cells.size}
                    | {"attention": np.round(map_hw, 6).tolist()}
                ),
            },
        )


def row_of(map_MM: Tensor, cells: Cells, row: int, column: int) -> np.ndarray:
    """What one cell attends to, on the map's rows and columns."""
    rows, columns = cells.grid
    return map_MM[row * columns + column].reshape(rows, columns).float().numpy()


def _place(cells: Cells, row: int, column: int) -> str:
    """The middle of a cell, in the image's pixels."""
    height, width = cells.size
    return f"{min((column + 0.5) * width, cells.image[1] - 1):.0f},{min((row + 0.5) * height, cells.image[0] - 1):.0f}"
