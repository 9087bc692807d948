"""Triton's interpreter without what it does again at every call of a function inside a kernel."""

from typing import Any

import pytest


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that a kernel calls needs its module's names of `triton.language` replaced once, while the kernel
    runs. To replace them at each of a thousand calls takes most of a test's time."""
    from triton.runtime import interpreter

    replaced: set[int] = set()
    start = interpreter.GridExecutor.__call__

    def started(self: Any, *arguments: Any, **constants: Any) -> None:
        replaced.clear()
        start(self, *arguments, **constants)

    def call(self: Any, *arguments: Any, **constants: Any) -> Any:
        if id(self.fn.__globals__) not in replaced:
            interpreter._patch_lang(self.fn)
            replaced.add(id(self.fn.__globals__))
        return self.rewrite()(*arguments, **constants)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", started)
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
