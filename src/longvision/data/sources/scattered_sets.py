"""What can be asked of scattered digits: which one occurs most, what each pixel shows, where each of them is."""

from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from longvision.data.io.colours import spread_colours
from longvision.data.io.images import Channels, as_channels
from longvision.data.sources.digits import CLASSES
from longvision.data.sources.objects import as_target
from longvision.data.sources.scattered import COUNTS, ScatteredDigits, Scene
from longvision.data.sources.sets import Split
from longvision.types import Colour, Target

NIGHT = (40, 40, 40)  # the colour of the background

Answer = TypeVar("Answer")


class ScatteredSource(Generic[Answer]):
    """Scattered digits as a problem; a subclass says what the answer to a scene is.

    Args:
        size: height and width, pixels.
        channels: 1 for grey, 3 for colour.
        pictures: how many train; 200 validate, 400 of other writers test.
        seed: another one is another set.
    """

    has_test = True
    has_background = False  # a class before the digits

    def __init__(
        self,
        size: tuple[int, int] = (256, 256),
        channels: Channels = 1,
        pictures: int = COUNTS["train"],
        seed: int = 0,
    ) -> None:
        self.size, self.channels, self.seed = size, channels, seed
        self.counts = {**COUNTS, "train": pictures}
        self.classes: list[str] = ["background"] * self.has_background + CLASSES
        self.palette: list[Colour] = [NIGHT] * self.has_background + spread_colours(len(CLASSES))

    def split(self, split: Split) -> "ScatteredSet[Answer]":
        return ScatteredSet(self, ScatteredDigits(split, self.counts[split], self.size, seed=self.seed))

    def check(self, split: Split) -> None:
        """Drawn, not labelled: there is nothing to be wrong."""

    def answer(self, index: int, scene: Scene) -> Answer:
        raise NotImplementedError


class ScatteredSet(Dataset[tuple[Image.Image, Answer]]):
    """One split's pictures with their answers."""

    def __init__(self, source: ScatteredSource[Answer], scenes: ScatteredDigits) -> None:
        self.source, self.scenes = source, scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Image.Image, Answer]:
        scene = self.scenes.scene(index)
        return as_channels(scene.image, self.source.channels), self.source.answer(index, scene)

    def name(self, index: int) -> str:
        return f"{self.scenes.split} picture {index}"


class ScatteredMost(ScatteredSource[int]):
    """Which digit occurs most?"""

    def answer(self, index: int, scene: Scene) -> int:
        return scene.most


class ScatteredSegmentation(ScatteredSource[np.ndarray]):
    """Which digit does each pixel show, if any? Class 0 is the background, class d + 1 digit d."""

    has_background = True

    def answer(self, index: int, scene: Scene) -> np.ndarray:
        return scene.class_map_HW


class ScatteredDetection(ScatteredSource[Target]):
    """Where is each digit?"""

    has_masks = True

    def answer(self, index: int, scene: Scene) -> Target:
        return as_target(index, scene.boxes_N4, scene.labels_N, None, torch.from_numpy(scene.masks_NHW))
