"""The compiled kernels as Python calls them: one library a dtype, on torch's own threads."""

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from longvision.ops.kernels.cpp.compiler import (
    LOGGER,
    CompilerError,
    cache_folder,
    compiled,
    find_compiler,
    find_ziglang,
    fingerprint_on_this_processor,
)
from longvision.ops.kernels.cpp.prebuilt import prebuilt
from longvision.ops.kernels.cpp.runtime import start_functions

DEFINITIONS: dict[torch.dtype, tuple[str, ...]] = {
    torch.float32: (),
    torch.float64: ("REAL_DOUBLE",),
    torch.bfloat16: ("STORED_BF16",),
}


class Library:
    """The kernels for tensors of one dtype; each is called with the bytes of its record (see `pack`), and raises
    MemoryError where it finds no memory to work in. Scans come several at once, with two numbers: how many are computed
    beside each other, and how many each of these is one after the other.

    `dtype` is what tensors of tokens are stored in, `real` what is computed in and parameters are given in, `lanes` the
    channels of one vector.
    """

    scans_forward: Callable[[bytes, int, int], None]
    scans_backward: Callable[[bytes, int, int], None]
    conv_forward: Callable[[bytes], None]
    conv_backward: Callable[[bytes], None]
    norm_forward: Callable[[bytes], None]
    norm_backward: Callable[[bytes], None]
    matmul: Callable[[bytes], None]

    def __init__(self, dtype: torch.dtype, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self.set_runtime = library.set_runtime  # takes what `start_functions` gives
        self.set_runtime(start_functions())
        self.dtype, self.real = dtype, torch.promote_types(dtype, torch.float32)
        self.lanes = int(library.lanes())
        for name in Library.__annotations__:
            function = getattr(library, f"call_{name}")
            numbers = [ctypes.c_int64] * 2 if name.startswith("scans_") else []
            function.argtypes, function.restype = [ctypes.c_char_p, *numbers], _check
            setattr(self, name, function)
        # These two take a record, memory to work in, of a size that they tell, and where they write.
        self.blocks_forward, self.block_backward = library.call_blocks_forward, library.call_block_backward
        self.blocks_forward.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
        self.block_backward.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_char_p]
        self.blocks_forward.restype = self.block_backward.restype = _check
        self.space_of_block_forward = library.space_of_block_forward
        self.space_of_block_backward = library.space_of_block_backward
        for function in (self.space_of_block_forward, self.space_of_block_backward):
            function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int64


def _check(code: int) -> None:
    if code:
        raise MemoryError("longvision's CPU kernels found no memory to work in")


@functools.cache
def kernels(dtype: torch.dtype) -> Library | None:
    """The kernels for a dtype; None where this machine cannot have them, which is said once."""
    if dtype not in DEFINITIONS:
        return None
    reasons: list[Exception] = []
    for way in _ways(DEFINITIONS[dtype]):
        try:
            library = _checked(dtype, way())
        except (CompilerError, OSError) as error:
            reasons.append(error)
            LOGGER.info("longvision: %s", error)
            continue
        for reason in reasons:
            if isinstance(reason, KernelFault):
                LOGGER.warning("longvision: %s", reason)
        return library
    said = [reason for reason in reasons if isinstance(reason, KernelFault)] or reasons[::2]  # of the two compilers
    _say_once("; ".join(dict.fromkeys(map(str, said))))
    return None


class KernelFault(CompilerError):
    """A library computes wrong numbers on this processor."""


_candidates: dict[torch.dtype, Library] = {}  # libraries that are being checked
_one_at_a_time = threading.Lock()


def _checked(dtype: torch.dtype, path: Path) -> Library:
    """The library, once it computed what the reference does on this processor; raises KernelFault."""
    from longvision.ops.self_check import faults  # which calls the ops, and they the kernels

    library = Library(dtype, path)
    note = _note(path)
    if note is not None and note.exists():
        return library
    with _one_at_a_time:
        _candidates[dtype] = library
        try:
            found = faults(library)
        finally:
            del _candidates[dtype]
    if found:
        off = ", ".join(f"{name} by {error:.1g}" for name, error in found.items())
        raise KernelFault(f"{path} is not used, since its kernels are off the reference on this processor: {off}")
    if note is not None:
        with contextlib.suppress(OSError):  # or it is checked again
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
    return library


def _note(path: Path) -> Path | None:
    """A file that is there when the library was found right on this processor; None where there is no place for it."""
    try:
        return cache_folder() / f"{path.stem}-{fingerprint_on_this_processor(path)}.checked"
    except CompilerError:
        return None


def _ways(definitions: tuple[str, ...]) -> Iterator[Callable[[], Path]]:
    """To a library, the best first: ziglang compiles its own library of C++ too, which takes minutes."""
    yield lambda: compiled(definitions, find_compiler())
    yield lambda: prebuilt(definitions)
    if ziglang := find_ziglang():
        yield lambda: compiled(definitions, ziglang)


def kernels_for(dtype: torch.dtype) -> Library:
    """The same, where `available` said that there are some."""
    library = _candidates.get(dtype) or kernels(dtype)
    assert library is not None, "available() was not asked"
    return library


@torch.compiler.assume_constant_result
def available(device: str, dtype: torch.dtype) -> bool:
    """Whether there are kernels for such tensors, on this machine."""
    return device == "cpu" and kernels(dtype) is not None


@functools.cache
def _say_once(reason: str) -> None:
    LOGGER.warning(
        "longvision: its CPU kernels are not available, plain torch runs instead, right but several times slower: %s",
        " ".join(reason.split()),
    )
