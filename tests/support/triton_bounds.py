"""In Triton's interpreter: a kernel that reads or writes beside the tensors it was given raises an error, by name."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from longvision.ops.kernels.triton import launch


def watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks every address that is loaded from or stored to, until the test ends."""
    from triton.runtime.interpreter import InterpreterBuilder

    kernel_name, begins, ends = "", np.empty(0, np.uint64), np.empty(0, np.uint64)
    start = launch.run

    def started(kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], *rest: Any) -> None:
        nonlocal kernel_name, begins, ends
        kernel_name, storages = kernel.__name__, [a.untyped_storage() for a in arguments if isinstance(a, Tensor)]
        spans = sorted({(storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for storage in storages})
        begins, ends = np.array(spans, np.uint64).T
        start(kernel, grid, arguments, *rest)

    def check(pointers: Any, mask: Any, what: str) -> None:
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)].astype(np.uint64)
        size = np.uint64(-(-pointers.get_element_ty().primitive_bitwidth // 8))
        span = np.searchsorted(begins, addresses, side="right") - 1
        if (span < 0).any() or (addresses + size > ends[span]).any():
            raise IndexError(f"{kernel_name} {what} beside its tensors")

    def load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask, "reads")
        return loads(self, pointers, mask, *rest)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask, "writes")
        return stores(self, pointers, value, mask, *rest)

    # Those without a mask go through these too, with one that is all true.
    loads, stores = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", store)
    monkeypatch.setattr(launch, "run", started)
