"""A trained model from its file alone, and what it says of images. Needs neither Lightning nor the training data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from longvision.data.images import read_image
from longvision.data.preprocess import Preprocess
from longvision.models.checkpoints import read_metadata, restore_weights
from longvision.tasks.backbone import create_backbone


@dataclass
class Prediction:
    """The most likely classes of one image, most likely first, with their probabilities."""

    name: str
    image: Image.Image
    top: list[tuple[str, float]]


class Predictor:
    """A classifier with its preprocessing and class names.

    Args:
        weights: model.safetensors of a run.

    Raises:
        FileNotFoundError, ValueError: not such a file.
    """

    def __init__(self, weights: Path) -> None:
        description = read_description(weights)
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
    def predict(self, path: Path, top: int = 5) -> Prediction:
        """Raises UnreadableImage for a file that is none."""
        image = read_image(path, self.preprocess.channels)
        x_BCHW = self.preprocess.transform()(image)[None]
        shares = self.model(x_BCHW)[0].float().softmax(0)
        values, numbers = shares.topk(min(top, len(self.classes)))
        best = [(self.classes[i], share) for i, share in zip(numbers.tolist(), values.tolist())]
        return Prediction(str(path), image, best)


def read_description(weights: Path) -> dict[str, Any]:
    """What a run wrote beside its weights: architecture, classes, preprocessing. Raises ValueError without them."""
    description = read_metadata(weights)
    if missing := [key for key in ("architecture", "classes", "preprocess") if key not in description]:
        raise ValueError(
            f"{weights} does not say its {', '.join(missing)}: expected a model.safetensors that "
            "`longvision train` wrote"
        )
    return description
