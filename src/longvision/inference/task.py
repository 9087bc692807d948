"""What a task's predictor says of its models: how one is made, what it takes, and what its output means."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor, nn

from longvision.data.io.deep import AnyImage
from longvision.errors import UserError
from longvision.inference.config import InferenceConfig
from longvision.inference.description import Description
from longvision.inference.results import Result

Named = tuple[str, Image.Image]  # an image with its name


class TaskPredictor:
    """A subclass says how a model of one task is made and read.

    Args:
        description: what a run wrote beside its weights.
        inference: windows and test-time augmentation in place of the run's, for a task that has them.

    Raises:
        UserError: `inference` for a task without it.
    """

    batch: ClassVar[int] = 1  # images at once where nobody says: those of most tasks may be large
    if_too_large: ClassVar[str] = "make it smaller, or cut it into tiles"

    def __init__(self, description: Description, inference: InferenceConfig | None = None) -> None:
        if inference is not None:
            raise UserError(f"{description.source} is a model for {description.task}: only a segmentation has windows")
        self.description, self.classes, self.palette = description, description.classes, description.palette

    def take_up_to(self, detections: int) -> None:
        """The most objects of an image, in place of the run's. Raises UserError for a task without."""
        raise UserError(
            f"{self.description.source} is a model for {self.description.task}: only detectors find objects"
        )

    def limit_tokens(self, model: nn.Module, tokens: int | None, budget_ms: float | None) -> float | None:
        """From now on images keep their proportions and have at most `tokens` patches, or as many as the model, where
        it is, takes in `budget_ms`; -> the milliseconds that these took, where they were measured.

        Raises UserError for a task whose images keep their size, and a model that takes images of one size.
        """
        about = self.description
        raise UserError(f"{about.source} is a model for {about.task}: only a classifier's images may have any size")

    def create(self) -> nn.Module:
        """The model with random weights."""
        about = self.description
        return self.creator()(
            about.architecture,
            classes=len(about.classes),
            channels=self.description.input.channels,
            size=self.description.input.size,
            args=about.args,
            **about.head,
        )

    def creator(self) -> Callable[..., nn.Module]:
        """What makes it: (architecture, classes, channels, size, args, and the head's options) -> model."""
        raise NotImplementedError

    def at_once(self, batch: int) -> int:
        """How many images `predict` gets, where the caller asks for `batch`."""
        return batch

    def prepare(self, image: AnyImage) -> Tensor:
        """The model's input (C, H, W), as validation prepares it."""
        return self.description.input.evaluated(image)

    def predict(self, model: Any, images: list[Tensor], inputs: Sequence[Named], batch: int) -> Sequence[Result]:
        """Prepared images (C, H, W) of one size, with the names and images they come from -> their results."""
        raise NotImplementedError
