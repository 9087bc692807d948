"""What the tests of the kernels in Triton share: they run on a GPU, or in Triton's interpreter on the CPU."""

import importlib.util
from collections.abc import Callable

import pytest
import torch


@pytest.fixture(autouse=True)
def _triton() -> None:
    # Not "triton": that is also what a folder without a module in it is called here.
    if not importlib.util.find_spec("triton") or not importlib.util.find_spec("triton.language"):
        pytest.skip("no package triton")


@pytest.fixture(autouse=True)
def _within_bounds(_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        from support.triton_bounds import watch
        from support.triton_interpreter import quicken

        watch(monkeypatch)
        quicken(monkeypatch)


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def cuda() -> str:
    """For what is too large for the interpreter."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton, for whatever op."""
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "triton")


@pytest.fixture
def chunk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the tokens between saved states, and of a program of the convolution, to have many chunks of few tokens."""

    def set_chunk(tokens: int) -> None:
        monkeypatch.setattr("longvision.ops.kernels.triton.layout.CHUNK", tokens)
        monkeypatch.setattr("longvision.ops.kernels.triton.convolution.RUN", tokens)

    return set_chunk


@pytest.fixture
def blocks(chunk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the tokens of every kernel's block, for matmuls too: 16 at least."""

    def set_blocks(tokens: int) -> None:
        chunk(tokens)
        monkeypatch.setattr("longvision.ops.kernels.triton.project.TOKENS", tokens)

    return set_blocks
