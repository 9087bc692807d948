"""What may differ between a file of weights and a model of ours, made to fit: position embeddings are resampled,
filters for three colours are adapted to another number of channels, and class tokens go where the model has them."""

import math
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.layers import ClassToken, ClassTokens, resample_pos_embed
from longvision.layers.factorised import interpolated

Weights = dict[str, Tensor]
MAY_DIFFER = "pos_embed", "cls_token", "rope."  # how names begin that another form of a model does not have


def fitted(weights: Weights, model: Any, metadata: dict[str, Any] | None = None) -> Weights:
    """The same weights for a backbone of ours, but for its pooling and head. Those of another model stay as they are.

    Raises UserError as `fit_positions`.
    """
    own = model.state_dict()
    weights = model.from_released(weights)
    if all(n.startswith((*MAY_DIFFER, *model.pool_names, model.head_name)) for n in own.keys() ^ weights.keys()):
        weights = fit_positions(weights, model, metadata)
    name = getattr(model, "pretrained_cfg", {}).get("first_conv", "patch_embed.proj") + ".weight"
    if name in weights and weights[name].ndim == 4 and weights[name].shape[1] == 3 != model.in_chans:
        weights[name] = adapt_input_conv(model.in_chans, weights[name])
    return weights


def differences(weights: Weights, model: nn.Module) -> list[str]:
    """What of them does not fit a model, a phrase a tensor."""
    own = model.state_dict()
    differ = [f"{name} is missing" for name in own if name not in weights]
    differ += [f"{name} is unknown to the model" for name in weights if name not in own]
    return differ + [
        f"{name} is {tuple(weights[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]


def fit_positions(weights: Weights, model: Any, metadata: dict[str, Any] | None = None) -> Weights:
    """The same weights with position embeddings for the model's grid and for where its class tokens stand.

    A model without class tokens takes those of the file away; one with others than the file has keeps what it gets,
    and the check for missing tensors speaks.

    Raises UserError for positions of another kind, and for those that fill no grid.
    """
    if not hasattr(model, "tokens"):  # a hierarchy of maps has no positions
        return weights
    kind = model.positions
    if "grid" in (metadata or {}) and (found := (metadata or {}).get("positions", "absolute")) != kind:
        raise UserError(
            f"the checkpoint has positions={found!r}, the model {kind!r}: create the model with positions={found!r}"
        )
    if kind.endswith("_learned"):
        return _fit_tables(weights, model)
    # Rotary positions are the same numbers for each grid.
    weights = {**weights, **{n: own for n, own in model.named_buffers() if n.startswith("rope.") and n in weights}}
    if (pos_1MD := weights.get("pos_embed")) is None or pos_1MD.ndim != 3:
        return weights
    tokens = ClassTokens(_class_token(weights, model, metadata or {}))
    grid = _grid(pos_1MD.shape[1] - tokens.count, model, metadata or {})
    pos_1MD = resample_pos_embed(pos_1MD, grid, model.grid, tokens)
    patches_1MD, class_1TD = tokens.extract(pos_1MD)
    if model.tokens.count == 0:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("cls_token")}
        return {**weights, "pos_embed": patches_1MD}
    return {
        **weights,
        "pos_embed": model.tokens.in_positions.insert(patches_1MD, class_1TD) if tokens.count else pos_1MD,
    }


def _fit_tables(weights: Weights, model: Any) -> Weights:
    """With tables of positions for the model's grid."""
    fitted = dict(weights)
    for name, side in zip(("pos_embed.rows", "pos_embed.columns"), model.grid):
        if (table := weights.get(name)) is not None and table.ndim == 2 and len(table) != side:
            fitted[name] = interpolated(table, [side], model.pos_embed.fractional).to(table.dtype)
    return fitted


def _class_token(weights: Weights, model: Any, metadata: dict[str, Any]) -> ClassToken:
    """Where the class token stands in the file's sequence; names alone do not tell the head from the middle."""
    if "pos_embed_cls" in weights:  # registers have positions of their own
        return "none"
    if "cls_token" in metadata:
        return metadata["cls_token"]
    if "cls_token_head" in weights:
        return "double"
    if "cls_token" in weights:
        return "head" if model.tokens.kind == "head" else "middle"
    return "none"


def _grid(patches: int, model: Any, metadata: dict[str, Any]) -> tuple[int, int]:
    """The grid of patches that the file's positions were learned on: what it says, else a square as all released."""
    side = math.isqrt(max(patches, 0))
    if "grid" in metadata:
        rows, columns = metadata["grid"]
    elif side * side == patches:
        rows, columns = side, side
    else:
        rows, columns = model.grid
    if rows * columns != patches or patches < 1:
        raise UserError(
            f"the checkpoint has positions for {patches} patches, which do not fill a grid of {rows}x{columns}: "
            "create the model with the img_size that it was trained at"
        )
    return rows, columns
