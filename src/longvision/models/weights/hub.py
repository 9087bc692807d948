"""Released weights, fetched from where their authors keep them."""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Any

from timm.models._hub import download_cached_file

from longvision.errors import UserError


class UnreachableWeights(UserError, ConnectionError):
    """Released weights could not be fetched."""


def locate_weights(variant: str, cfg: Any, cache_dir: str | Path | None = None) -> Any:
    """timm's pretrained_cfg with a file in it: fetched from the hub or an address, unless the caller named one.

    Raises:
        UnreachableWeights: they cannot be fetched.
    """
    if cfg.state_dict or cfg.source:
        return cfg
    if cfg.file:
        return dataclasses.replace(cfg, custom_load=True)
    if cfg.url and not cfg.custom_load:
        return cfg  # timm's way
    if cfg.url:
        where, fetch = cfg.url, partial(download_cached_file, cfg.url, cache_dir=cache_dir)
    elif cfg.hf_hub_id and cfg.hf_hub_filename:
        where = f"{cfg.hf_hub_id} ({cfg.hf_hub_filename}) on the Hugging Face hub"
        fetch = partial(_from_hub, cfg.hf_hub_id, cfg.hf_hub_filename, cache_dir)
    else:
        return cfg  # timm says that there are no weights for this model
    name = f"{variant}.{cfg.tag}" if cfg.tag else variant
    try:
        path = fetch()
    except Exception as error:  # no network, no proxy, no such file, offline mode: all mean the same to the caller
        raise UnreachableWeights(
            f"the weights of {name} could not be fetched from {where} ({type(error).__name__}): fetch the file on a "
            f'machine that can, and pass it as timm.create_model("{name}", pretrained=True, '
            f'pretrained_cfg_overlay=dict(file="PATH"))'
        ) from error
    return dataclasses.replace(cfg, url=None, file=path, custom_load=True)


def _from_hub(repository: str, filename: str, cache_dir: str | Path | None) -> str:
    from huggingface_hub import hf_hub_download

    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.ERROR)  # it reports each of its retries
    try:
        return hf_hub_download(repository, filename, cache_dir=cache_dir)
    finally:
        hub_log.setLevel(level)
