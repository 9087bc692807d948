"""What can be asked of scattered digits: their mode, what each pixel shows, where each of them is."""

from functools import partial
from typing import TypeVar

import numpy as np

from longvision.data.io.colours import spread_colours
from longvision.data.io.deep import AnyImage
from longvision.data.io.images import Channels, as_channels
from longvision.data.sources.base import ImageSet, Listed, Source, check_grey_or_colour
from longvision.data.sources.digits import CLASSES
from longvision.data.sources.objects import as_target
from longvision.data.sources.scattered import COUNTS, ScatteredDigits, Scene, check_scenes
from longvision.types import Size, Split, Target

NIGHT = (40, 40, 40)  # the colour of the background

Label = TypeVar("Label")


class ScatteredSource(Source[Label]):
    """`ScatteredDigits` as a problem, `count` of them to train; a subclass says what the label of a scene is."""

    name = "scattered-digits"
    has_test = True
    has_background = False  # a class before the digits

    def __init__(
        self, size: Size = (256, 256), channels: Channels = 1, count: int = COUNTS["train"], seed: int = 0
    ) -> None:
        check_scenes(count, size, seed)
        check_grey_or_colour(channels, self.name)
        self.size, self.channels, self.seed = size, channels, seed
        self.counts = {**COUNTS, "train": count}
        self.classes: list[str] = ["background"] * self.has_background + CLASSES
        self.palette = [NIGHT] * self.has_background + spread_colours(len(CLASSES))

    def split(self, split: Split) -> ImageSet[Label]:
        scenes = ScatteredDigits(split, self.counts[split], self.size, seed=self.seed)
        return ImageSet(range(len(scenes)), partial(self._read, scenes))

    def identified(self, split: Split, row: int, item: int) -> Listed:
        return Listed(f"{split} {item} of {self.size[0]}x{self.size[1]}, seed {self.seed}", "")

    def label(self, index: int, scene: Scene) -> Label:
        raise NotImplementedError

    def _read(self, scenes: ScatteredDigits, index: int) -> tuple[AnyImage, Label]:
        scene = scenes.scene(index)
        return as_channels(scene.image, self.channels), self.label(index, scene)


class ScatteredMode(ScatteredSource[int]):
    """Which digit occurs most?"""

    def label(self, index: int, scene: Scene) -> int:
        return scene.most


class ScatteredSegmentation(ScatteredSource[np.ndarray]):
    """Which digit does each pixel show, if any? Class 0 is the background, class d + 1 digit d."""

    has_background = True

    def label(self, index: int, scene: Scene) -> np.ndarray:
        return scene.class_map_HW


class ScatteredDetection(ScatteredSource[Target]):
    """Where is each digit?"""

    has_masks = True

    def label(self, index: int, scene: Scene) -> Target:
        return as_target(index, scene.boxes_N4, scene.labels_N, None, scene.masks_NHW)
