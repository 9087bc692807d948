"""What the tests of the ops share."""

import support.start  # noqa: F401  # isort: skip  # before our modules, where these tests alone are named

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from longvision.ops.kernels.cpp.library import DEFINITIONS, kernels
from support.forked import Done, Forked


@pytest.fixture(scope="session", autouse=True)
def checked_kernels() -> None:
    """At their first use kernels are compared with the reference: not in the middle of a test that counts calls."""
    for dtype in DEFINITIONS:
        kernels(dtype)


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., Done]:
    """Runs code in a process of its own, with these environment variables beside this process's."""
    return lambda code, *arguments, **environment: Forked(tmp_path, code, *arguments, **environment).wait()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of torch's threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
