"""Released weights, fetched from the Hugging Face hub."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from longvision.errors import UserError


class UnreachableWeights(UserError, ConnectionError):
    """Released weights could not be fetched."""


def locate_weights(variant: str, cfg: Any, cache_dir: str | Path | None = None) -> Any:
    """timm's pretrained_cfg with a file in it: fetched from the hub, unless the caller named one.

    Raises:
        UnreachableWeights: the hub cannot be reached.
    """
    if cfg.state_dict or cfg.source or cfg.url:
        return cfg
    if cfg.file:
        return dataclasses.replace(cfg, custom_load=True)
    if not cfg.hf_hub_id or not cfg.hf_hub_filename:
        return cfg  # timm says that there are no weights for this model
    from huggingface_hub import hf_hub_download

    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.ERROR)  # it reports each of its retries
    try:
        path = hf_hub_download(cfg.hf_hub_id, cfg.hf_hub_filename, cache_dir=cache_dir)
    except Exception as error:  # no network, no proxy, no such file, offline mode: all mean the same to the caller
        raise UnreachableWeights(
            f"the weights of {variant} could not be fetched from {cfg.hf_hub_id} ({cfg.hf_hub_filename}) on the "
            f"Hugging Face hub ({type(error).__name__}): fetch the file on a machine that can, and pass it as "
            f'timm.create_model("{variant}", pretrained=True, pretrained_cfg_overlay=dict(file="PATH"))'
        ) from error
    finally:
        hub_log.setLevel(level)
    return dataclasses.replace(cfg, file=path, custom_load=True)
