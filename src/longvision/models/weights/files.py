"""Weights from files: the authors' pickles, safetensors with their names or ours (they are the same names).

Strict: a tensor that is missing, unknown or of the wrong shape is an error that names it. What may differ is what
has a meaning in another size: position embeddings are resampled, a head for another class count starts anew, the
filters for three colours are adapted to another number of channels.
"""

import argparse
import json
import logging
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
from torch import Tensor, nn

from longvision.errors import MissingFileError, UnsavedError, UserError
from longvision.files import METADATA_KEY, opened_weights, read_metadata, written_beside
from longvision.models.weights.fit import Weights, differences, fit_positions, fitted
from longvision.models.weights.identify import nearest

# What released files hold beside weights: yacs's nodes are dictionaries, and read as such.
SETTINGS: list[Any] = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]
AVERAGED = "A_c_log"  # in names of ARM's tensors, whose published accuracies are of the average
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
    load_fitted(model, fitted(weights, model, metadata), path, model.head_name, given=weights)


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
    if isinstance(average, dict) and any(AVERAGED in str(name) for name in average):
        if "model" in content:
            logger.info(
                "%s holds model and model_ema, an average of its weights: model_ema is taken, as published", path
            )
        return dict(average)
    if isinstance(content, dict) and {"model", "model_ema"} <= content.keys():
        logger.info("%s holds model and model_ema, an average of its weights: model is taken", path)
    for key in ("model", "model_ema", "state_dict", "state_dict_ema"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return dict(content) if isinstance(content, dict) else {}


def load_fitted(
    model: nn.Module, weights: Weights, path: str | os.PathLike[str], head: str, more: int = 0, given: Any = None
) -> None:
    """Strictly, but for the head: in place of one for another class count or pooling the model keeps the one that it
    was made with, which is told.

    Args:
        head: its name.
        more: its outputs that are no class.
        given: see `check_fits`.
    """
    own, heads = model.state_dict(), (f"{head}.weight", f"{head}.bias")
    found, wanted = (tuple(there[heads[0]].shape) if heads[0] in there else (0,) for there in (weights, own))
    pools = {n for n in weights if n not in own and n.partition(".")[0] in getattr(model, "pool_names", ())}
    anew = found != (0,) and (found != wanted or bool(pools))
    weights = {n: w for n, w in weights.items() if n not in pools}
    if anew:
        weights = {n: w for n, w in weights.items() if n not in heads}
        weights |= {n: own[n] for n in heads if n in own}
    check_fits(weights, model, path, given)
    model.load_state_dict(weights)
    if anew and wanted[0] > more:
        classes = f"{found[0] - more} classes, the model {wanted[0] - more}"
        what = "another pooling" if found[0] == wanted[0] else classes
        logger.warning("%s has a head for %s: its head starts anew", path, what)


def check_fits(weights: Weights, model: nn.Module, path: str | os.PathLike[str], given: Weights | None = None) -> None:
    """Raises UserError for weights that do not fit; `given` are those of the file, before they were made to fit."""
    if not (differ := differences(weights, model)):
        return
    found, cfg = nearest(weights if given is None else given), getattr(model, "pretrained_cfg", {})
    made = cfg.get("architecture"), f"{cfg.get('architecture')}.{cfg.get('tag')}"
    if found is None or found.name in made or not found.is_near:
        raise other_model(path, differ, made[0])
    whose = "the nearest of ours is" if found.differ else "these are weights of"
    raise other_model(path, differ, made[0], f"; {whose} {found.name}")


def other_model(path: str | os.PathLike[str], differ: Sequence[str], name: str | None, fits: str = "") -> UserError:
    """For weights that do not fit the model of that name, if it has one: what differs, the first five of many, and
    whose they are."""
    more = f"; and {len(differ) - 5} more" if len(differ) > 5 else ""
    fits = fits or _written_of(path, name)
    return UserError(f"{path} is a checkpoint for another model: {'; '.join(differ[:5])}{more}{fits}")


def _written_of(path: str | os.PathLike[str], name: str | None) -> str:
    """The model that our own files name beside the weights, where that is another than the one of that name."""
    if name is None or not str(path).endswith(".safetensors"):
        return ""
    written = str(read_metadata(path).get("architecture", name))
    return "" if written.partition(".")[0] == name.partition(".")[0] else f"; it is for {written}"


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
