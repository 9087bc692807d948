"""Weights from files: the authors' pickles, safetensors with their names or ours (they are the same names).

Strict: a tensor that is missing, unknown or of the wrong shape is an error that names it. What may differ is what
has a meaning in another size: position embeddings are resampled, a head for another class count starts anew, the
filters for three colours are adapted to another number of channels.
"""

import argparse
import json
import logging
import math
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from longvision.errors import MissingFileError, UnsavedError, UserError
from longvision.files import METADATA_KEY, opened_weights, written_beside
from longvision.layers import ClassToken, ClassTokens, resample_pos_embed
from longvision.layers.factorised import interpolated
from longvision.models.weights.identify import family_of, fitting

Weights = dict[str, Tensor]
# What released files hold beside weights: yacs's nodes are dictionaries, and read as such.
SETTINGS: list[Any] = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]
logger = logging.getLogger(__name__)


def load_weights(model: Any, path: str | os.PathLike[str], prefix: str = "") -> None:
    """Fill a backbone of ours from a file, for another image size, stride, class count or number of channels too.

    With `prefix`, from the tensors whose names begin with it.

    Raises:
        MissingFileError: no such file.
        UserError: not a checkpoint, one that holds code, or one for another model (the tensors that differ).
    """
    weights, metadata = read_weights(path)
    if prefix:
        weights = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        if not weights:
            raise UserError(f"{path} holds no tensor whose name begins with {prefix!r}")
    weights = fit_positions(model.from_released(weights), model, metadata)
    _fit_input(weights, model)
    fit_head(weights, model, path, model.head_name)
    check_fits(weights, model, path)
    model.load_state_dict(weights)


def restore_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Fill any timm model with a run's weights, all of them; a Vim's positions for another size. Raises as above."""
    fill_weights(model, *read_weights(path), path)


def fill_weights(model: nn.Module, weights: Weights, metadata: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """As `restore_weights`, with what was read already; `path` is for messages."""
    positioned, prefix = _positioned(model)
    if positioned is not None:
        own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        fitted = {prefix + name: weight for name, weight in fit_positions(own, positioned, metadata).items()}
        weights = {**{name: weight for name, weight in weights.items() if not name.startswith(prefix)}, **fitted}
    check_fits(weights, model, path)
    model.load_state_dict(weights)


def save_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    metadata: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write safetensors, with what a reader needs to know of them as JSON. Raises as `write_weights`."""
    write_weights(model.state_dict(), path, {**_describe(model), **(metadata or {})}, overwrite)


def write_weights(
    weights: Weights, path: str | os.PathLike[str], metadata: dict[str, Any], overwrite: bool = False
) -> None:
    """Whole or not at all; a tensor with two names is written under both.

    Raises ExistingFileError where `path` exists and may not be overwritten, UnsavedError where the disk is full.
    """
    own: Weights = {}
    addresses = set()
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if address in addresses else tensor  # safetensors refuses shared memory
        addresses.add(address)
    with written_beside(path, overwrite, durable=True) as beside:
        beside.touch()
        usual_mode = beside.stat().st_mode
        try:
            safetensors.torch.save_file(own, beside, {"format": "pt", METADATA_KEY: json.dumps(metadata)})
        except safetensors.SafetensorError as error:  # its word for an OSError
            raise UnsavedError(f"{path} could not be written: {error}") from error
        beside.chmod(usual_mode)  # safetensors keeps its files from all but their owner


def read_weights(path: str | os.PathLike[str]) -> tuple[Weights, dict[str, Any]]:
    """-> tensors by name, and the metadata that `save_weights` wrote ({} from elsewhere). Raises as `load_weights`."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file: expected a checkpoint (.safetensors, .pth)")
    if path.suffix == ".safetensors":
        with opened_weights(path, "pt") as (file, metadata):
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dictionary
    else:
        weights, metadata = _read_pickle(path), {}
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    if not weights or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise UserError(f"{path} holds no weights: expected tensors by name, under 'model' or at the top")
    return weights, metadata


def _read_pickle(path: Path) -> Weights:
    """The authors' format, {"model": weights, "args": Namespace, ...}, or the weights alone. Nothing in it runs."""
    try:
        with torch.serialization.safe_globals(SETTINGS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path} is refused, and nothing in it was run: it holds {what[1] if what else 'something'} beside "
            "tensors, numbers, strings, containers and a Namespace"
        ) from error
    except Exception as error:  # bytes that are no pickle fail in any way there is
        raise UserError(f"{path} is not a checkpoint that torch can read: {error}") from error
    average = content.get("model_ema") if isinstance(content, dict) else None
    if isinstance(average, dict) and family_of(average) == "ARM":  # the published ones, beside those of the last step
        return dict(average)
    if isinstance(content, dict) and {"model", "model_ema"} <= content.keys():
        logger.info("%s holds model and model_ema, an average of its weights: model is taken", path)
    for key in ("model", "model_ema", "state_dict", "state_dict_ema"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return dict(content) if isinstance(content, dict) else {}


def fit_positions(weights: Weights, model: Any, metadata: dict[str, Any] | None = None) -> Weights:
    """The same weights with position embeddings for the model's grid and for where its class tokens stand.

    A model without class tokens takes those of the file away; one with others than the file has keeps what it gets,
    and the check for missing tensors speaks.

    Raises UserError for positions of another kind, and for those that fill no grid.
    """
    kind = getattr(model, "positions", "absolute")
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


def _fit_input(weights: Weights, model: Any) -> None:
    name = getattr(model, "pretrained_cfg", {}).get("first_conv", "patch_embed.proj") + ".weight"
    if name in weights and weights[name].ndim == 4 and weights[name].shape[1] == 3 != model.in_chans:
        weights[name] = adapt_input_conv(model.in_chans, weights[name])


def fit_head(
    weights: Weights, model: nn.Module, path: str | os.PathLike[str], head: str = "head", more: int = 0
) -> None:
    """A head for another class count cannot be used: the model keeps the one that it was made with. `more` are its
    outputs that are no class."""
    own = model.state_dict()
    found, wanted = (len(there.get(f"{head}.weight", ())) for there in (weights, own))
    if found in (0, wanted):
        return
    if wanted > more:
        logger.warning(
            "%s has a head for %d classes, the model %d: its head starts anew", path, found - more, wanted - more
        )
    for name in (f"{head}.weight", f"{head}.bias"):
        weights.pop(name, None)
        if name in own:
            weights[name] = own[name]


def check_fits(weights: Weights, model: nn.Module, path: str | os.PathLike[str]) -> None:
    own = model.state_dict()
    differ = [f"{name} is missing" for name in own if name not in weights]
    differ += [f"{name} is unknown to the model" for name in weights if name not in own]
    differ += [
        f"{name} is {tuple(weights[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if differ:
        name, cfg = fitting(weights), getattr(model, "pretrained_cfg", {})
        made = cfg.get("architecture"), f"{cfg.get('architecture')}.{cfg.get('tag')}"
        raise other_model(path, differ, f"; these are weights of {name}" if name and name not in made else "")


def other_model(path: str | os.PathLike[str], differ: Sequence[str], fits: str = "") -> UserError:
    """For weights that do not fit: what differs, the first five of many, and whose they are."""
    more = f"; and {len(differ) - 5} more" if len(differ) > 5 else ""
    return UserError(f"{path} is a checkpoint for another model: {'; '.join(differ[:5])}{more}{fits}")


def _positioned(model: Any) -> tuple[Any, str]:
    """The backbone of ours, the model or the base of one, and what its tensors' names begin with; else None."""
    base = getattr(model, "base", None)
    return (model, "") if hasattr(model, "tokens") else (base if hasattr(base, "tokens") else None, "base.")


def _describe(model: Any) -> dict[str, Any]:
    """What names and shapes of the tensors do not say."""
    model, _ = _positioned(model)
    if model is None:
        return {}
    positions = {"positions": model.positions} if model.positions != "absolute" else {}
    return {"grid": list(model.grid), "cls_token": model.tokens.in_positions.kind, **positions}
