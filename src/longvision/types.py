"""What rooms hand to each other. On the bottom floor: loads no library, so that data can be listed before torch is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from torch import Tensor

    Array = Any  # a tensor in batches and losses, a NumPy array in what is drawn or written

Split = Literal["train", "val", "test"]
Finetune = Literal["full", "head", "class_token", "memory", "memory_mask"]  # see `longvision.models.memory`
Size = tuple[int, int]  # height, width
Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
IGNORE = 255  # the value of a mask's pixels that do not count


@dataclass(frozen=True)
class CocoIds:
    """What a COCO set calls its categories and images.

    Args:
        categories: the id of each class.
        images: an image's folder and its name in the JSON file, as in "val2017/7.jpg" -> its id. Each JSON file numbers
            its own: two images may have one id. Empty where they are not known.
    """

    categories: list[int | str]
    images: dict[str, int] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """The keys of `images` by the name in the JSON file, which several folders may have."""
        found: dict[str, list[str]] = {}
        for key in self.images:
            found.setdefault(key.split("/", 1)[-1], []).append(key)
        return found

    @cached_property
    def next_image(self) -> int:
        """The first id that is free, and all behind it are."""
        return max(self.images.values(), default=0) + 1


class _PerObject:
    """A dataclass whose arrays have one row per object."""

    def __len__(self) -> int:
        return len(self.boxes)  # type: ignore[attr-defined]

    def _arrays(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if hasattr(value, "shape")}

    def select(self, keep_N: Any) -> Self:
        """Some of the objects only: those where bool (N,) is True, or those with these row numbers."""
        return replace(self, **{name: value[keep_N] for name, value in self._arrays().items()})  # type: ignore[type-var]

    def to(self, device: Any) -> Self:
        """The same with its tensors on a device."""
        return replace(self, **{name: value.to(device) for name, value in self._arrays().items()})  # type: ignore[type-var]

    def pin_memory(self) -> Self:
        """The same in memory from which a GPU copies without waiting."""
        return replace(self, **{name: value.pin_memory() for name, value in self._arrays().items()})  # type: ignore[type-var]

    def numpy(self) -> Self:
        """The same with NumPy arrays."""
        arrays = {name: value.detach().cpu().numpy() for name, value in self._arrays().items() if hasattr(value, "cpu")}
        return replace(self, **arrays)  # type: ignore[type-var]


@dataclass(frozen=True)
class Target(_PerObject):
    """The objects that are in one image; N may be 0.

    Args:
        boxes: float32 (N, 4), x1, y1, x2, y2 in pixels.
        labels: int64 (N,), class numbers from 0.
        iscrowd: bool (N,): neither trained on, nor counted when it is missed.
        masks: bool (N, H, W), or what draws them when it is asked; None where the source has none.
        image_id: the image's number in its source.
        size: height and width of the image to whose pixels boxes and masks refer: of the original, in evaluation; in
            training, of the part of the image beside it that is not padding. None for all of that image.
    """

    boxes: Array
    labels: Array
    iscrowd: Array
    masks: Array | None = None
    image_id: int = 0
    size: Size | None = None


@dataclass(frozen=True)
class Detections(_PerObject):
    """The objects that a model found in one image, in the image's own pixels; N may be 0.

    Args:
        boxes: float32 (N, 4), x1, y1, x2, y2 in pixels.
        scores: float32 (N,), from 0 to 1.
        labels: int64 (N,), class numbers from 0.
        masks: bool (N, H, W); None from a model that finds boxes alone.
    """

    boxes: Array
    scores: Array
    labels: Array
    masks: Array | None = None


@dataclass(frozen=True)
class DataInfo:
    """What a model must know of its data.

    Args:
        name: of the set, for messages and titles.
        classes: their names.
        size: height and width of the training images, pixels.
        channels: 1 for grey, 3 for colour, or as many as the files have.
        has_masks: whether objects have masks.
        palette: a colour for each class, where pixels or objects are drawn.
        multilabel: whether an image may have any number of the classes.
    """

    name: str
    classes: list[str]
    size: Size
    channels: int = 3
    has_masks: bool = False
    palette: list[Colour] | None = None
    multilabel: bool = False


@dataclass(frozen=True)
class PackedImages:
    """Images of different sizes one behind another, as one sequence of patches (as NaViT's, arXiv 2307.06304).

    Args:
        patches: float (1, M, C * P * P), those of each image row by row; a patch holds its P x P pixels channel by
            channel, as a convolution's filter does.
        grids: rows and columns of patches of each image.
        kept: int64 (M,), where some patches were dropped: the number of each patch that is left in its image's grid,
            counted from 0, row by row, rising within an image. None: all are there.
        lengths: patches that are left of each image. Goes with `kept`; without it, as many as fill the grids.

    Raises:
        ValueError: no images, patches of another shape, not as many as fill the grids, or numbers that are not in them.
    """

    patches: Tensor
    grids: tuple[Size, ...]
    kept: Tensor | None = None
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        grids = tuple((int(rows), int(columns)) for rows, columns in self.grids)
        sizes = tuple(rows * columns for rows, columns in grids)
        lengths = tuple(int(length) for length in self.lengths) or (sizes if self.kept is None else ())
        object.__setattr__(self, "grids", grids)
        object.__setattr__(self, "lengths", lengths)
        if not grids or any(size < 1 for size in sizes):
            raise ValueError(f"grids {grids}: expected at least one image, of at least one patch each")
        if len(lengths) != len(grids) or any(length < 1 for length in lengths):
            raise ValueError(f"lengths {lengths} for the grids {grids}: expected at least one patch of each image")
        if self.kept is None and lengths != sizes:
            raise ValueError(f"lengths {lengths} do not fill the grids {grids}: say with kept= which patches are left")
        if self.patches.ndim != 3 or tuple(self.patches.shape[:2]) != (1, sum(lengths)):
            whose = f"the grids {grids} hold" if self.kept is None else f"the lengths {lengths} are"
            raise ValueError(
                f"patches of shape {tuple(self.patches.shape)}: expected (1, {sum(lengths)}, C * P * P), since "
                f"{whose} {sum(lengths)} patches"
            )
        if self.kept is not None:
            _check_kept(self.kept, sizes, lengths)

    @classmethod
    def from_images(
        cls, images: Sequence[Tensor], patch: int, stride: int | None = None, kept: Sequence[Tensor] | None = None
    ) -> Self:
        """Images (C, H, W) of one C, cut into patches of side `patch` at distances of `stride`, None for `patch`.

        `kept`: for each image the numbers of the patches to keep, int64, rising; None for all.

        Raises ValueError for no images, and for an image that does not divide into patches.
        """
        import torch

        if not images:
            raise ValueError("no images to pack: expected at least one")
        stride = stride or patch
        cut = [_patches_of(image, patch, stride) for image in images]
        grids = tuple((grid.shape[0], grid.shape[1]) for grid in cut)
        patches = [grid.flatten(2).flatten(0, 1) for grid in cut]
        if kept is None:
            return cls(torch.cat(patches)[None], grids)
        left = [of_image[numbers] for of_image, numbers in zip(patches, kept, strict=True)]
        return cls(torch.cat(left)[None], grids, torch.cat(list(kept)), tuple(len(numbers) for numbers in kept))

    def __len__(self) -> int:
        return len(self.grids)

    def to(self, device: Any) -> Self:
        """The same with its tensors on a device."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=tensor.device.type == "cpu"))

    def pin_memory(self) -> Self:
        """The same in memory from which a GPU copies without waiting."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def with_patches(self, patches: Tensor) -> Self:
        """The same images with other patches, as many and where these are."""
        other = copy(self)
        object.__setattr__(other, "patches", patches)
        return other

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        """Not checked again: to look at numbers on a GPU is to wait for it."""
        moved = copy(self)
        object.__setattr__(moved, "patches", move(self.patches))
        if self.kept is not None:
            object.__setattr__(moved, "kept", move(self.kept))
        return moved


def _check_kept(kept_M: Tensor, sizes: Sequence[int], lengths: Sequence[int]) -> None:
    """Raises ValueError unless those are numbers of patches of grids of such sizes, rising within each."""
    import torch

    if kept_M.dtype != torch.int64 or tuple(kept_M.shape) != (sum(lengths),):
        raise ValueError(
            f"kept of shape {tuple(kept_M.shape)} and type {kept_M.dtype}: expected int64 of shape ({sum(lengths)},), "
            "one number a patch"
        )
    size_M = torch.tensor(sizes).repeat_interleave(torch.tensor(lengths)).to(kept_M.device)
    before_M = torch.tensor([0, *accumulate(sizes)][:-1]).repeat_interleave(torch.tensor(lengths)).to(kept_M.device)
    if not (((kept_M >= 0) & (kept_M < size_M)).all() and ((kept_M + before_M).diff() > 0).all()):
        raise ValueError(
            f"kept holds numbers that do not rise within an image, or are not in its grid of {sizes} patches: "
            "expected each once, from 0"
        )


def _patches_of(image_CHW: Tensor, patch: int, stride: int) -> Tensor:
    """(C, H, W) -> (rows, columns, C, P, P)."""
    if image_CHW.ndim != 3:
        raise ValueError(f"image of shape {tuple(image_CHW.shape)}: expected (channels, height, width)")
    height, width = image_CHW.shape[1:]
    if any(side < patch or (side - patch) % stride for side in (height, width)):
        raise ValueError(
            f"image {height}x{width} does not divide into patches of {patch} at stride {stride}: resize or pad it"
        )
    return image_CHW.unfold(1, patch, stride).unfold(2, patch, stride).permute(1, 2, 0, 3, 4)
