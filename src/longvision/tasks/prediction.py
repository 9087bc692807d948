"""A trained model from its file alone, and what it says of images. Needs neither Lightning nor the training data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from longvision.data.images import read_image
from longvision.data.preprocess import Preprocess
from longvision.models.checkpoints import read_weights
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
        state, metadata = read_weights(weights)
        if missing := [key for key in ("architecture", "classes", "preprocess") if key not in metadata]:
            raise ValueError(
                f"{weights} does not say its {', '.join(missing)}: expected a model.safetensors that "
                "`longvision train` wrote"
            )
        self.classes: list[str] = metadata["classes"]
        self.preprocess = Preprocess.from_dict(metadata["preprocess"])
        self.model = _restore(metadata, state, self.classes, self.preprocess)

    @torch.inference_mode()
    def predict(self, path: Path, top: int = 5) -> Prediction:
        """Raises UnreadableImage for a file that is none."""
        image = read_image(path, self.preprocess.channels)
        x_BCHW = self.preprocess.transform()(image)[None]
        shares = self.model(x_BCHW)[0].float().softmax(0)
        values, numbers = shares.topk(min(top, len(self.classes)))
        best = [(self.classes[i], share) for i, share in zip(numbers.tolist(), values.tolist())]
        return Prediction(str(path), image, best)


def _restore(metadata: dict[str, Any], state: dict[str, Any], classes: list[str], preprocess: Preprocess) -> nn.Module:
    args = metadata.get("args", {})
    model = create_backbone(metadata["architecture"], len(classes), preprocess.channels, preprocess.size, args=args)
    model.load_state_dict(state)
    return model.eval()
