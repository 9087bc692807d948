"""A trained model from its file alone, and what it says of images. Needs neither Lightning nor the training data."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor, nn

from longvision.errors import ImageTooLarge, UserError, is_out_of_memory
from longvision.files import find_weights
from longvision.inference.config import InferenceConfig
from longvision.inference.description import Description, with_image_ids
from longvision.inference.device import find_device
from longvision.inference.inputs import ImageSource, to_image
from longvision.inference.results import Result
from longvision.inference.task import TaskPredictor
from longvision.models.weights.files import fill_weights, read_weights
from longvision.registry import load, task_entry

OnError = Callable[[ImageSource, Exception], None]
Prepared = tuple[ImageSource, str, Image.Image, Tensor]


class Predictor:
    """predictor = Predictor(RUN); predictor("photo.jpg").image().show()

    Images are paths, bytes of files, PIL images, arrays (H, W, C) or tensors (C, H, W); `inputs.to_image` says what
    their values mean.

    Args:
        source: a run's folder, its model.safetensors, or a model, which is put into evaluation mode. The folder alone
            knows the ids that a COCO set gave its images.
        device: "cpu", "cuda", "cuda:1", "mps" or a torch.device; by default the first GPU where there is one, else the
            CPU. A model that is given stays where it is.
        batch: images, or windows of one image, that the model sees at once; by default what suits the task. Images are
            only put together where they have one size, so that the results do not depend on it.
        inference: of a segmentation: windows and test-time augmentation, in place of those of its run.
        description: of a model that is given: its task, classes and preprocessing.
        detections: of a detector that is read from a file: the most objects of an image, in place of its run's.
        tokens: of a classifier that takes images of every size: images keep their proportions, and have at most so many
            patches.
        budget_ms: the same, with as many patches as the model takes in so many milliseconds an image, which is measured
            here, one image at once; at most four times those of training.

    Raises:
        UserError: no such file, one that is no run's, an unknown device, options that the task or the model does not
            have, or too little time.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | nn.Module,
        device: str | torch.device | None = None,
        batch: int | None = None,
        inference: InferenceConfig | None = None,
        description: Description | None = None,
        detections: int | None = None,
        tokens: int | None = None,
        budget_ms: float | None = None,
    ) -> None:
        if batch is not None and batch < 1:
            raise UserError(f"batch {batch}: expected at least 1 image")
        if isinstance(source, nn.Module):
            if description is None:
                raise TypeError("a model does not say its classes and preprocessing: pass a Description of them")
            self.description, self.model = description, source
            self._task = _task_predictor(description, inference)
            parameter = next(source.parameters(), torch.empty(0))
            self.device = parameter.device if device is None else find_device(device)
        else:
            self.device = find_device(device)
            path = find_weights(source)
            weights, metadata = read_weights(path)
            self.description = with_image_ids(Description.from_metadata(metadata, path), source)
            self._task = _task_predictor(self.description, inference)
            if detections is not None:
                self._task.take_up_to(detections)
            self.model = self._task.create()
            fill_weights(self.model, weights, metadata, path)
        self.model.to(self.device).eval()
        self.milliseconds: float | None = None  # of an image with the most patches, where `budget_ms` asks for them
        if tokens is not None or budget_ms is not None:
            if tokens is not None and budget_ms is not None:
                raise UserError("tokens and budget_ms both say how large an image is: give one of them")
            self.milliseconds = self._task.limit_tokens(self.model, tokens, budget_ms)
            self.description = self._task.description
        self.batch = self._task.batch if batch is None else batch
        self.classes = self.description.classes

    @overload
    def __call__(self, images: ImageSource) -> Any: ...
    @overload
    def __call__(self, images: list[ImageSource] | tuple[ImageSource, ...]) -> list[Any]: ...
    @overload
    def __call__(self, images: Iterator[ImageSource]) -> Iterator[Any]: ...

    def __call__(self, images: Any) -> Any:
        """One image -> its result, a `ClassResult`, `MaskResult` or `ObjectResult`; a list of images -> a list.

        An iterator -> an iterator, which holds no more than a batch: for more images than fit into memory.

        Raises:
            UnreadableImage: a file that is no image.
            ImageTooLarge: an image that does not fit into memory.
            UserError: an array or tensor whose meaning is not certain.
        """
        if isinstance(images, list | tuple):
            return list(self.stream(images))
        if isinstance(images, Iterator):
            return self.stream(images)
        return next(self.stream([images]))

    def stream(self, images: Iterable[ImageSource], on_error: OnError | None = None) -> Iterator[Any]:
        """Results one after the other, in the images' order.

        With `on_error`, an image without a result is told there, with the reason, and left out; else it is raised. A
        reason that is no UserError is a bug of ours or of a library, which one image may have met alone.
        """

        def give_up(source: ImageSource, error: Exception) -> None:
            if on_error is None:
                raise error
            on_error(source, error)

        for group in self._groups(self._prepared(images, give_up)):
            yield from self._results(group, give_up)

    def _prepared(self, images: Iterable[ImageSource], give_up: OnError) -> Iterator[Prepared]:
        for number, source in enumerate(images, 1):
            name = str(source) if isinstance(source, str | os.PathLike) else f"image-{number}"
            try:
                image = to_image(source, self.description.input, name)
                yield source, name, self.description.input.shown(image), self._task.prepare(image)
            except Exception as error:
                give_up(source, self._reason(name, None, error))

    def _groups(self, images: Iterable[Prepared]) -> Iterator[list[Prepared]]:
        """As many as go together: neighbours of one size, up to a batch."""
        group: list[Prepared] = []
        for one in images:
            if group and (len(group) == self._task.at_once(self.batch) or one[3].shape != group[0][3].shape):
                yield group
                group = []
            group.append(one)
        if group:
            yield group

    def _results(self, group: list[Prepared], give_up: OnError) -> Sequence[Result]:
        """Where a group fails, as it does where it does not fit into memory, one by one."""
        try:
            return self._predict(group)
        except Exception as error:
            source, name, image, _ = group[0]
            reason = self._reason(name, image, error)
        if len(group) == 1:
            give_up(source, reason)
            return []
        return [result for one in group for result in self._results([one], give_up)]

    @torch.inference_mode()
    def _predict(self, group: list[Prepared]) -> Sequence[Result]:
        images = [image_CHW.to(self.device) for *_, image_CHW in group]
        return self._task.predict(self.model, images, [(name, image) for _, name, image, _ in group], self.batch)

    def _reason(self, name: str, image: Image.Image | None, error: Exception) -> Exception:
        """The error itself, or that an image is too large where it is about memory."""
        if not is_out_of_memory(error):
            return error
        size = f" ({image.width}x{image.height} pixels)" if image else ""
        return ImageTooLarge(f"{name}{size} is too large for the memory there is: {self._task.if_too_large}")


def _task_predictor(description: Description, inference: InferenceConfig | None) -> TaskPredictor:
    return load(task_entry(description.task).predictor)(description, inference)
