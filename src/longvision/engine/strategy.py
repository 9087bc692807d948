"""How the processes of a run work together: their strategy, their cluster, and how long they wait for each other."""

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from longvision.engine.callbacks.unreadable import UnreadableImages
from longvision.engine.checkpoint_file import remove, replace_folder, seal_folder
from longvision.engine.ranks import on_first_rank
from longvision.errors import UserError, disk_words, told_as_unsaved
from longvision.layers import VimBlock
from longvision.layers.vss_block import VSSBlock
from longvision.models.arm import ARMBlock
from longvision.models.localvim import LocalVimBlock
from longvision.tasks.task import Task

# Longer than the first process draws a report; a process that hangs ends the others after it.
TIMEOUT = timedelta(minutes=30)
BLOCKS: set[type[nn.Module]] = {VimBlock, ARMBlock, LocalVimBlock, VSSBlock, Block}


def make_strategy(name: str) -> Any:
    """Lightning's for a name; "fsdp" shards each block's weights over the GPUs, and a checkpoint is a folder. Raises
    UserError for that without a GPU."""
    if name not in ("fsdp", "fsdp_cpu_offload"):
        return name
    if not torch.cuda.is_available():
        raise UserError(f"--trainer.strategy {name} needs GPUs, and there is none: on a CPU there is ddp")
    return ShardedStrategy(
        auto_wrap_policy=BLOCKS, state_dict_type="sharded", cpu_offload=name == "fsdp_cpu_offload", timeout=TIMEOUT
    )


def cluster() -> list[Any]:
    """Of SLURM, where it starts the processes: Lightning alone would answer SIGUSR1 by requeuing the job with a
    checkpoint outside of the run's folder."""
    by_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if by_slurm else []


class ShardedStrategy(FSDPStrategy):
    """A checkpoint takes its name when every device has written its share, as `RunCheckpointIO`'s does."""

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Raises UnsavedError, on every device, where the disk of one of them does not take it."""
        path = Path(self.broadcast(filepath)).resolve()
        beside = path.with_name(f".{path.name}")
        on_first_rank(self, partial(_make_empty, beside, path))
        failure = self._write(checkpoint, beside, storage_options)
        on_first_rank(self, partial(self._finish, beside, path, failure))

    def load_checkpoint(self, checkpoint_path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        saver: Any = self.checkpoint_io
        saver.whole.add(path.resolve())
        return super().load_checkpoint(path, *arguments, **options)

    def _write(self, checkpoint: dict[str, Any], beside: Path, options: Any | None) -> BaseException | None:
        """-> what failed on any device, or of what the first one writes alone behind the shards."""
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            super().save_checkpoint(checkpoint, beside, options)
        except CheckpointException as errors:  # raised on all of them
            failure = next(iter(errors.failures.values()))[0]
            if not isinstance(failure, Exception):  # an interruption
                raise
            failure.__cause__ = errors
            return failure
        except Exception as error:
            if not self.is_global_zero or disk_words(error) is None:
                raise
            return error
        return None

    def _finish(self, beside: Path, path: Path, failure: BaseException | None) -> None:
        """Give the folder its name, or remove it."""
        saver: Any = self.checkpoint_io  # a RunCheckpointIO, which writes no folder itself
        try:
            with told_as_unsaved(path):
                if failure is not None:
                    raise failure
                seal_folder(beside)
                replace_folder(beside, path, saver.backup(path))
                saver.whole.add(path)
        finally:
            with suppress(OSError):  # the next attempt tells it
                remove(beside)


def _make_empty(beside: Path, path: Path) -> None:
    """A folder, in place of what a process that was killed left under its name."""
    with told_as_unsaved(path):
        remove(beside)
        beside.mkdir(parents=True)


def in_one_piece(trainer: Trainer, task: Task, weights: dict[str, Tensor]) -> tuple[Trainer, Task]:
    """What was trained in shards, with all its weights on every device, and a trainer to evaluate it.

    A drawing, a file of weights, and whatever else the first process makes alone would wait for the others' shards.
    """
    copy = type(task)(replace(task.config, pretrained=False), task.info)
    copy.config = task.config
    copy.load_state_dict(weights)
    callbacks: list[Callback] = [each for each in trainer.callbacks if isinstance(each, UnreadableImages)]  # type: ignore[attr-defined]
    replicas = Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.num_devices,
        num_nodes=trainer.num_nodes,
        strategy="auto" if trainer.world_size == 1 else "ddp",
        precision=trainer.precision,
        limit_val_batches=trainer.limit_val_batches,
        limit_test_batches=trainer.limit_test_batches,
        plugins=cluster(),
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    return replicas, copy
