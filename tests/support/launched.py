"""Programs that run in several processes, started by Lightning or by torchrun."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import longvision

LAUNCHED = ("SLURM", "RANK", "LOCAL_", "GROUP_", "NODE_RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC")


def launch(folder: Path, text: str, *launcher: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """A program whose first argument is `folder`/runs. Raises TimeoutExpired for one that hangs."""
    program = folder / "program.py"
    program.write_text(text)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHED)}
    paths = os.pathsep.join(str(Path(file).parents[1]) for file in (longvision.__file__, __file__))
    environment = {**clean, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(program), str(folder / "runs")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def torchrun() -> list[str]:
    """The launcher, for two processes."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    return ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
