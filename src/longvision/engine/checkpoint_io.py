"""How a checkpoint is written and read: under a name of its own until it is whole and on the disk, with a checksum."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from longvision.engine.checkpoint_file import is_whole, remove, seal
from longvision.engine.run import LAST, PREVIOUS
from longvision.errors import told_as_unsaved
from longvision.files import replace_durably


class RunCheckpointIO(TorchCheckpointIO):
    """Whatever moment a process ends in, and however full a disk is, the checkpoint that was there before is whole.

    The last checkpoint's forerunner stays beside it. Only the first of several processes writes, and says which file
    all of them read.
    """

    def __init__(self) -> None:
        self.whole: set[Path] = set()  # known to be

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises UnsavedError where the disk does not take it."""
        path = Path(path).resolve()
        beside = path.with_name(f".{path.name}")  # where a killed process may have left a file or a folder
        try:
            with told_as_unsaved(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                remove(beside)
                with beside.open("wb") as file:
                    torch.save(checkpoint, file)
                seal(beside)
                replace_durably(beside, path, self.backup(path))
                self.whole.add(path)
        finally:
            with suppress(OSError):  # the next attempt tells it
                remove(beside)

    def backup(self, path: Path) -> Path | None:
        """Where what has the name now stays; a damaged one does not take the place of a whole one."""
        is_last = path.name == LAST and path.exists() and (path in self.whole or is_whole(path))
        return path.with_name(PREVIOUS) if is_last else None

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        chosen = [str(path)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(chosen)
        self.whole.add(Path(chosen[0]).resolve())
        return super().load_checkpoint(chosen[0], *arguments, **options)
