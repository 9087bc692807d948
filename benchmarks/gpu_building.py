"""The authors' kernels are built while other things are measured, and waited for where they are called."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gpu_peers as peers

from longvision.benchmark.case import sentence


@contextmanager
def building(folder: Path | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    outcome = peers.BUILT / "outcome"
    outcome.unlink(missing_ok=True)
    peers.BUILT.mkdir(parents=True, exist_ok=True)
    (peers.BUILT / "started").write_text(str(time.time()))
    script = Path(__file__).resolve().parent / "gpu_peers.py"
    process = subprocess.Popen([sys.executable, str(script), str(folder)], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        (peers.BUILT / "started").unlink(missing_ok=True)


def is_building() -> bool:
    """Whether a build was started, has not ended, and still has time."""
    started = peers.BUILT / "started"
    if not started.exists() or (peers.BUILT / "outcome").exists():
        return False
    return time.time() < float(started.read_text()) + peers.BUILD_LIMIT + 15


def find_kernels(built: bool) -> Any:
    """The authors' kernels, or why there are none; waits for their build if there is one."""
    reason = wait_for_build() if built else ""
    try:
        return peers.load_kernels()
    except Exception as error:  # a package built for another torch fails with whatever it likes
        return reason or ("not installed" if isinstance(error, ModuleNotFoundError) else sentence(error))


def wait_for_build() -> str:
    """-> why it came to nothing, or ""."""
    while is_building():
        time.sleep(0.5)
    outcome = peers.BUILT / "outcome"
    return outcome.read_text() if outcome.exists() else "not built in time"
