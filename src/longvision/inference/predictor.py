"""A trained model from its file alone, and what it says of images. Needs neither Lightning nor the training data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from longvision.data.io.images import read_image
from longvision.data.transforms.preprocess import Preprocess
from longvision.files import read_metadata
from longvision.inference.config import InferenceConfig
from longvision.inference.windows import probabilities
from longvision.models.backbone import create_backbone
from longvision.models.weights.files import restore_weights
from longvision.types import Detections


@dataclass
class Prediction:
    """What a model says of one picture."""

    name: str
    image: Image.Image


@dataclass
class TopClasses(Prediction):
    """The most likely classes, most likely first, with their probabilities."""

    top: list[tuple[str, float]] = field(default_factory=list)


@dataclass
class ClassMap(Prediction):
    """Class numbers (H, W) uint8, and for each class that occurs the mean probability of its pixels."""

    mask_HW: np.ndarray
    scores: dict[int, float]


@dataclass
class FoundObjects(Prediction):
    """Detections as NumPy arrays."""

    objects: Detections


class Predictor:
    """A classifier with its preprocessing and class names.

    Args:
        weights: model.safetensors of a run.

    Raises:
        FileNotFoundError, ValueError: not such a file.
    """

    if_too_large = "make it smaller"

    def __init__(self, weights: Path) -> None:
        description = _described(weights, "classification")
        self.classes: list[str] = description["classes"]
        self.preprocess = Preprocess.from_dict(description["preprocess"])
        self.model = create_backbone(
            description["architecture"],
            len(self.classes),
            self.preprocess.channels,
            self.preprocess.size,
            args=description.get("args"),
        ).eval()
        restore_weights(self.model, weights)

    @torch.inference_mode()
    def predict(self, path: str | Path, top: int = 5) -> TopClasses:
        """Raises UnreadableImage for a file that is none."""
        image = read_image(path, self.preprocess.channels)
        x_BCHW = self.preprocess.transform()(image)[None]
        shares = self.model(x_BCHW)[0].float().softmax(0)
        values, numbers = shares.topk(min(top, len(self.classes)))
        best = [(self.classes[i], share) for i, share in zip(numbers.tolist(), values.tolist())]
        return TopClasses(str(path), image, best)


class DensePredictor:
    """A model with a dense head, with its preprocessing, class names and colours."""

    def __init__(self, weights: Path, kind: str, create: Callable[..., nn.Module]) -> None:
        from longvision.data.dense import DensePreprocess

        self.description = description = _described(weights, kind)
        self.classes: list[str] = description["classes"]
        self.palette: list[tuple[int, int, int]] = [(r, g, b) for r, g, b in description["palette"]]
        self.preprocess = DensePreprocess.from_dict(description["preprocess"])
        self.model: Any = create(
            description["architecture"],
            classes=len(self.classes),
            channels=self.preprocess.channels,
            size=self.preprocess.size,
            args=description.get("args"),
            **description["head"],
        ).eval()
        restore_weights(self.model, weights)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device)

    def _read(self, path: str | Path) -> tuple[Image.Image, Tensor]:
        image = read_image(path, self.preprocess.channels)
        return image, self.preprocess.evaluated(image).to(self.device)


class SegmentationPredictor(DensePredictor):
    """Args: as above; `window`: side of windows that slide over the picture, pixels, in place of what the run used."""

    if_too_large = "go over it in windows (--window 512), make it smaller, or cut it into tiles"

    def __init__(self, weights: Path, window: int | None = None) -> None:
        from longvision.heads.segmentation import create_segmenter

        super().__init__(weights, "segmentation", create_segmenter)
        asking = self.description["asking"]
        self.asking = InferenceConfig(**(asking if window is None else {**asking, "window": window, "stride": None}))

    @torch.inference_mode()
    def predict(self, path: str | Path) -> ClassMap:
        """Raises UnreadableImage for a file that is none."""
        image, image_CHW = self._read(path)
        size = (image.height, image.width)
        shares_KHW = probabilities(self.model, image_CHW, len(self.classes), size, self.asking)
        score_HW, mask_HW = shares_KHW.max(0)
        scores = {number: float(score_HW[mask_HW == number].mean()) for number in mask_HW.unique().tolist()}
        return ClassMap(str(path), image, mask_HW.byte().cpu().numpy(), scores)


class ObjectPredictor(DensePredictor):
    """Args: as above."""

    if_too_large = "make it smaller, or cut it into tiles"

    def __init__(self, weights: Path, kind: str = "detection") -> None:
        if kind == "detr":
            from longvision.heads.detr import create_detr as create
        else:
            from longvision.heads.detection import create_detector as create  # type: ignore[assignment]
        super().__init__(weights, kind, create)

    @torch.inference_mode()
    def predict(self, path: str | Path) -> FoundObjects:
        """Raises UnreadableImage for a file that is none."""
        image, image_CHW = self._read(path)
        (found,) = self.model.detect([image_CHW], [(image.height, image.width)])
        return FoundObjects(str(path), image, found.numpy())


def load_predictor(weights: str | Path, window: int | None = None) -> Predictor | DensePredictor:
    """The predictor for what a run was trained for.

    Args:
        weights: model.safetensors of a run.
        window: for a segmentation: side of the windows that slide over a picture, pixels.

    Raises:
        FileNotFoundError, ValueError: not such a file, or a window for another task.
    """
    weights = Path(weights)
    kind = read_description(weights).get("task", "classification")
    if kind == "segmentation":
        return SegmentationPredictor(weights, window)
    if window is not None:
        raise ValueError(f"--window {window}: {weights} is a model for {kind}, only a segmentation slides windows")
    return Predictor(weights) if kind == "classification" else ObjectPredictor(weights, kind)


def _described(weights: Path, wanted: str) -> dict[str, Any]:
    """Raises ValueError for a file of another task."""
    description = read_description(weights)
    kind = description.get("task", "classification")
    if kind != wanted:
        raise ValueError(f"{weights} was trained for {kind}, not for {wanted}: give a run of {wanted}")
    return description


def read_description(weights: Path) -> dict[str, Any]:
    """What a run wrote beside its weights: architecture, classes, preprocessing. Raises ValueError without them."""
    description = read_metadata(weights)
    if missing := [key for key in ("architecture", "classes", "preprocess") if key not in description]:
        raise ValueError(
            f"{weights} does not say its {', '.join(missing)}: expected a model.safetensors that "
            "`longvision train` wrote"
        )
    return description
