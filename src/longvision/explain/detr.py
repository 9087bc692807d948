"""What a DETR does with one image: its queries' answers, and where it looked, as maps that lie on the image."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.inference.inputs import to_image
from longvision.inference.predictor import Predictor
from longvision.types import Size

Taker = Callable[[Tensor], Any]  # of a layer's attention (1, heads, M, M) or (1, heads, Q, M): what is kept of it


@dataclass(frozen=True)
class Cells:
    """How the cells of a model's map lie on an image: each covers `stride` pixels of the model's input, which is the
    whole image, resized. The last ones may stand out of it, to the right and below.

    Args:
        image: height and width of the image, pixels.
        input: of what the model sees of it.
        stride: of the map.
    """

    image: Size
    input: Size
    stride: int

    @property
    def grid(self) -> Size:
        """Rows and columns of the map."""
        return -(-self.input[0] // self.stride), -(-self.input[1] // self.stride)

    @property
    def size(self) -> tuple[float, float]:
        """Height and width of a cell in the image's pixels."""
        return self.stride * self.image[0] / self.input[0], self.stride * self.image[1] / self.input[1]

    def at(self, x: float, y: float) -> tuple[int, int]:
        """Row and column of the cell that a pixel lies in. Raises UserError for one outside of the image."""
        height, width = self.image
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(
                f"--point {x:g},{y:g} lies outside of the image of {width}x{height} pixels: expected X from 0 to "
                f"{width - 1} and Y from 0 to {height - 1}"
            )
        return int(y // self.size[0]), int(x // self.size[1])


@dataclass(frozen=True)
class Decoded:
    """One image as a DETR reads it.

    Args:
        image: upright, to look at.
        cells: where the cells of its map lie.
        scores_Q: each query's chance for its class.
        labels_Q: the likeliest class, nothing left out.
        boxes_Q4: centre, width and height as shares of the image.
        kept: of the attention that was watched, what was taken.
    """

    image: Image.Image
    cells: Cells
    scores_Q: np.ndarray
    labels_Q: np.ndarray
    boxes_Q4: np.ndarray
    kept: Any


@torch.inference_mode()
def decoded(
    predictor: Predictor, path: Path, module: nn.Module | None = None, take: Taker = lambda map: map
) -> Decoded:
    """One image, alone in its batch.

    Args:
        module: an attention of the model's transformer that is watched.
        take: what is kept of its map.

    Raises:
        UnreadableImage: no image.
    """
    spec, model = predictor.description.input, predictor.model
    image = to_image(path, spec, str(path))
    input_CHW = spec.evaluated(image).to(predictor.device)
    with _watched(model, module, take) as kept:
        logits_LBQK, boxes_LBQ4 = model.decode([input_CHW])  # type: ignore[operator]
    scores_Q, labels_Q = logits_LBQK[-1, 0].softmax(-1)[:, :-1].max(-1)
    stride = model.backbone.feature_info.reduction()[-1]  # type: ignore[union-attr, operator]
    cells = Cells((image.height, image.width), (input_CHW.shape[1], input_CHW.shape[2]), stride)
    scores_Q, labels_Q, boxes_Q4 = (one.cpu().numpy() for one in (scores_Q, labels_Q, boxes_LBQ4[-1, 0]))
    return Decoded(spec.shown(image), cells, scores_Q, labels_Q, boxes_Q4, kept[0] if kept else None)


@contextmanager
def _watched(model: Any, module: nn.Module | None, take: Taker) -> Iterator[list[Any]]:
    """Inside, what is taken of the module's map is appended. Only attention in plain torch has a map."""
    kept: list[Any] = []
    if module is None:
        yield kept
        return
    config = model.model.config
    before = config._attn_implementation
    config._attn_implementation = "eager"  # `set_attn_implementation` warns of the backbone, which is another's
    hook = module.register_forward_hook(lambda _, __, out: kept.append(take(out[1])))
    try:
        yield kept
    finally:
        hook.remove()
        config._attn_implementation = before
