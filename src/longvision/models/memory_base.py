"""What differs between timm's vision transformers and ours as the base of tasks; and two bases compared."""

from typing import Any

import torch
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.models.sequence import SequenceBackbone


def blocks(model: Any) -> Any:
    return model._blocks() if isinstance(model, SequenceBackbone) else model.blocks


def placed_class_token(model: Any) -> Tensor:
    """(1, 1, D), with its position."""
    if isinstance(model, SequenceBackbone):
        return model._placed(model._class_tokens(1))  # type: ignore[arg-type]  # memory asks for one
    token_11D = model.cls_token
    has_position = model.pos_embed is not None and not model.no_embed_class
    return token_11D + model.pos_embed[:, :1] if has_position else token_11D


def embedded(model: Any, images: Any) -> tuple[Tensor, Any, int]:
    """-> what the first block takes, a layout of ours, and where the class token stands."""
    if not isinstance(model, SequenceBackbone):
        return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images)))), None, 0
    if not isinstance(images, Tensor):
        raise UserError("a model with memory takes images of one size, (B, C, H, W), and no PackedImages")
    x_BMD, layout = model.embed(images)
    patches = x_BMD.shape[1] - 1
    return x_BMD, layout, patches // 2 if model.tokens.kind in ("middle", "registers") else 0


def finished(model: Any, x_BMD: Tensor, layout: Any) -> Tensor:
    """What the last block returns -> the base's output."""
    if isinstance(model, SequenceBackbone):
        return model._classes(model._norm()(model._in_order(x_BMD, layout)), layout)
    return model.forward_head(model.norm(x_BMD))


def normed(model: Any, token_B1D: Tensor) -> Tensor:
    """(B, 1, D) -> (B, 1, D), by the norms before the head."""
    if isinstance(model, SequenceBackbone):
        return model._norm()(token_B1D)
    return model.fc_norm(model.norm(token_B1D))


def first_difference(one: Any, other: Any) -> str | None:
    """What differs first of two bases, in words, None where they compute the same: their tensors are compared, and what
    they make of an image, which settings such as the number of heads change too."""
    if type(one) is not type(other):
        return f"{type(one).__name__} and {type(other).__name__}"
    ours, theirs = one.state_dict(), other.state_dict()
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name not in ours or name not in theirs:
            return name
        where, elsewhere = ((there[name].dtype, str(there[name].device)) for there in (ours, theirs))
        if where != elsewhere:
            return f"{name} ({where[0]} on {where[1]}, and {elsewhere[0]} on {elsewhere[1]})"
        if not torch.equal(ours[name], theirs[name]):
            return name
    if (size := _own_size(one)) != _own_size(other):
        return f"their image size ({size} and {_own_size(other)})"
    like = next(one.parameters())
    image_1CHW = torch.linspace(0, 1000, one.in_chans * size[0] * size[1]).sin().view(1, one.in_chans, *size)
    with torch.no_grad():
        outputs = [model(image_1CHW.to(like.device, like.dtype)) for model in (one, other)]
    return None if torch.equal(*outputs) else _first_setting(one, other)


def _own_size(model: Any) -> tuple[int, int]:
    patches = model.patch_embed
    if isinstance(model, SequenceBackbone):
        height, width = ((side - 1) * patches.stride + patches.patch for side in model.grid)
        return height, width
    height, width = patches.img_size
    return height, width


def _first_setting(one: nn.Module, other: nn.Module) -> str:
    for (name, ours), (_, theirs) in zip(one.named_modules(), other.named_modules()):
        if type(ours) is not type(theirs):
            return f"{name} ({type(ours).__name__} and {type(theirs).__name__})"
        for key, value in vars(ours).items():
            found = getattr(theirs, key, None)
            if isinstance(value, int | float | str | tuple) and found != value:
                return f"{name}.{key} ({value} and {found})"
    return "what they make of the same image"
