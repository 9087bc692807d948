"""The order of a data module's epochs, as its options ask for it, and what is refused of them before the first step."""

from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from timm.layers import PatchEmbed

from longvision.data.io.threads import in_threads
from longvision.data.multi_scale import MultiScaleOrder
from longvision.data.order import EpochOrder
from longvision.data.packed_order import PackedOrder
from longvision.data.packing import check_trainer
from longvision.data.sources.base import ImageSet
from longvision.errors import MissingFileError, UnreadableImage, UserError
from longvision.grid import grid_size
from longvision.types import Size

if TYPE_CHECKING:
    from longvision.data.datamodule import DataModule


def order_of(data: "DataModule") -> EpochOrder:
    """Raises UserError for options by which its images cannot be ordered."""
    place = (data.count, data.seed, *data.place())
    options: dict[str, Any] = {"batch": data.batch_size, "repeats": getattr(data.augment, "repeats", 1)}
    options["labels_N"] = _labels(data) if data.balance else None
    if data.packing:
        shapes_N2 = shapes_of(data.images("train")) if data.shapes_N2 is None else data.shapes_N2
        patch, sides = data.input.patch, data.sizes or data.size[:1]
        return PackedOrder(*place, shapes_N2=shapes_N2, sides=sides, patch=patch, config=data.packing, **options)
    if data.sizes:
        return MultiScaleOrder(*place, size=data.size, sides=data.sizes, **options)
    return EpochOrder(*place, accumulated=data.accumulated(), **options)


def check_model(data: "DataModule", model: Any, trainer: Any) -> None:
    """Raises UserError where the model that is trained does not take what these options make."""
    patches: Any = getattr(model, "patch_embed", None)
    if not data.packing:  # its sizes are checked where the patch is known
        _check_sizes([data.size, *((side, side) for side in data.sizes)], patches)
    check_trainer(bool(data.packing), data.sizes, trainer)
    if data.packing and not getattr(model, "takes_packed", False):
        raise UserError(
            f"data.pack true: {type(model).__name__} cannot take packed images, nor can any model with memory: choose "
            f"one of {', '.join(_models_that_pack())}, or leave it out"
        )
    if data.packing:
        data.packing.check_model(patches.patch, patches.stride, (data.size[0], *data.sizes))
    if data.sizes and getattr(patches, "strict_img_size", False):
        raise UserError(
            f"data.sizes {list(data.sizes)}: the model takes images of {data.size[0]}x{data.size[1]} alone; "
            "timm's vision transformers take others with --model.args.dynamic_img_size true"
        )


def _models_that_pack() -> list[str]:
    """Names of those that are registered whose class takes packed images, and whose patches do not overlap."""
    kinds = {name: timm.models.model_entrypoint(name).__annotations__.get("return") for name in timm.list_models()}
    names = [name for name, kind in kinds.items() if getattr(kind, "takes_packed", False)]
    with torch.device("meta"):
        patches: list[Any] = [timm.create_model(name).patch_embed for name in names]
    return [name for name, embed in zip(names, patches, strict=True) if embed.patch == embed.stride]


def _check_sizes(sizes: list[Size], patches: Any) -> None:
    """Raises UserError for a size that does not divide into the patches of a model of ours, or of timm's, which would
    leave the rest of the image out."""
    if isinstance(patches, PatchEmbed):
        if patches.dynamic_img_pad:
            return
        patch = stride = patches.patch_size[0]
        more = "--model.args.dynamic_img_size true " if patches.strict_img_size else ""
        pad, to_pad = False, f"{more}--model.args.dynamic_img_pad true"
    elif hasattr(patches, "pad") and hasattr(patches, "stride"):
        patch, stride, pad, to_pad = patches.patch, patches.stride, patches.pad, "--model.args.pad true"
    else:
        return
    for size in sizes:
        grid_size(*size, patch, stride, pad, to_pad)


def _labels(data: "DataModule") -> np.ndarray:
    """The class of each training image, by number. Raises UserError where an image has no single one."""
    numbers = {name: number for number, name in enumerate(data.classes)}
    labels = [image.label for image in data.fingerprint.images["train"]]
    if data.source.multilabel or not numbers.keys() >= set(labels):
        how = "may have any number of classes" if data.source.multilabel else "are not of one class each"
        raise UserError(f"data.balance true is for one class an image, and those of {data.name} {how}: leave it out")
    return np.array([numbers[label] for label in labels])


def look_at_shapes(data: "DataModule") -> None:
    """Of training images, where they are packed: in the first process, which tells the others."""
    trainer = data.trainer
    if not data.packing:
        return
    if data.shapes_N2 is None and (trainer is None or trainer.is_global_zero):
        data.shapes_N2 = shapes_of(data.images("train"))
    if trainer is not None and trainer.world_size > 1:
        data.shapes_N2 = trainer.strategy.broadcast(data.shapes_N2)


def shapes_of(images: ImageSet[Any]) -> np.ndarray:
    """Height and width of each image as it is read, int32 (N, 2): from the head of its file, where it has one. One that
    cannot be read counts as square."""
    header_of = getattr(images, "header_of", lambda row: None)  # a set of one's own may have none

    def shape(row: int) -> tuple[int, int]:
        try:
            if (header := header_of(row)) is not None:
                return header.size
            image, _ = images[row]
        except (UnreadableImage, MissingFileError):
            return 1, 1
        return image.height, image.width

    return np.array(list(in_threads(shape, range(len(images)))), dtype=np.int32)
