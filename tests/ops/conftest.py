"""What the tests of the ops share."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess]:
    """Runs code in a process of its own, with these environment variables beside this process's."""

    def run(code: str, *arguments: object, **environment: object) -> subprocess.CompletedProcess:
        paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        variables |= {name: str(value) for name, value in environment.items()}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of torch's threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
