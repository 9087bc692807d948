"""What a data module asks of a task: how an image and its label become a sample, and samples a batch."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

from longvision.data.io.deep import AnyImage
from longvision.data.sources.base import ImageSet
from longvision.data.transforms.input_spec import InputSpec

Label = TypeVar("Label")
Sample = tuple[Tensor, Any]


class Transforms(Generic[Label]):
    """Here, the batches of dense tasks: lists of images (C, H, W) and of labels, which may differ in size."""

    evaluation_batch: int | None = 1  # None: as many as in training

    def __init__(self, spec: InputSpec) -> None:
        self.spec = spec

    def train(self, image: AnyImage, label: Label, images: ImageSet[Label]) -> Sample:
        """What training sees of an image; `images` are all of the split, for transforms that mix several."""
        raise NotImplementedError

    def evaluate(self, image: AnyImage, label: Label) -> Sample:
        """What evaluation sees: the image as the model takes it, the label at the image's own size."""
        return self.spec.evaluated(image), label

    def collate(self, samples: Sequence[Sample]) -> Any:
        """Samples, one or more -> a batch."""
        images, labels = zip(*samples, strict=True)
        return list(images), list(labels)

    def mix(self, batch: Any) -> Any:
        """What training does to a whole batch once it is on its device."""
        return batch
