"""Where a run's numbers go beside its table: TensorBoard, and Weights & Biases where it is asked for."""

import warnings
from typing import Any

import yaml
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from longvision.engine.run import Run


def make_loggers(run: Run, project: str | None) -> list[Logger]:
    """In the run's folder; with a project, on the server too. A run that goes on does so in the same one there."""
    board = TensorBoardLogger(run.path, name="tensorboard", version="", default_hp_metric=False)
    return [board, _wandb(run, project)] if project is not None else [board]


def _wandb(run: Run, project: str) -> Logger:
    """Where the server cannot be reached it writes into the run's folder: no training waits for it."""
    from lightning.pytorch.loggers import WandbLogger

    options: dict[str, Any] = {"project": project, "name": run.path.name, "id": run.path.name, "save_dir": run.path}
    logger = WandbLogger(**options)
    try:
        logger.experiment  # noqa: B018 it begins there
    except Exception as error:
        warnings.warn(
            f"Weights & Biases cannot be reached ({type(error).__name__}: {error}): it writes into {run.path}/wandb, "
            "for `wandb sync`",
            stacklevel=2,
        )
        logger = WandbLogger(**options, offline=True)
    configs = run.configs()
    logger.log_hyperparams(yaml.safe_load(configs[-1].read_text(encoding="utf-8")) if configs else {})
    return logger
