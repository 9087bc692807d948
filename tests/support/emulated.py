"""The kernels in C++ compiled for another processor, under an emulator, in place of the ones in this process.

An op packs its records as ever; what they point to is sent to the driver (targets/driver.cpp) and read back from it.
"""

import ctypes
import struct
import subprocess
from functools import partial

import torch
from torch import Tensor

from longvision.ops.kernels.cpp.outside import outside_matmul

OUTSIDE = -1  # in place of a piece of memory: the driver's own matmul
NUMBER = -1  # in place of a piece of memory: the number itself


class Addresses:
    """The memory of each tensor whose address was asked for, kept alive: nothing else comes to stand there."""

    def __init__(self) -> None:
        self.storages: dict[int, torch.UntypedStorage] = {}

    def watch(self, monkeypatch) -> None:
        data_ptr = Tensor.data_ptr

        def watched(tensor: Tensor) -> int:
            storage = tensor.untyped_storage()
            self.storages[storage.data_ptr()] = storage
            return data_ptr(tensor)

        monkeypatch.setattr(Tensor, "data_ptr", watched)

    def start_of(self, address: int) -> int | None:
        """Of the memory that this address lies in; None: it is no address."""
        return next((start for start, s in self.storages.items() if start <= address < start + s.nbytes()), None)


class Emulated:
    """What `Library` gives, from a driver that runs as `command`."""

    def __init__(self, dtype: torch.dtype, command: list[str], addresses: Addresses) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addresses = addresses
        self.dtype, self.real = dtype, torch.promote_types(dtype, torch.float32)
        self.lanes = self.call("lanes")
        for name in ("space_of_block_forward", "space_of_block_backward"):
            setattr(self, name, partial(self.call, name))

    def __getattr__(self, name: str):
        return partial(self.checked, f"call_{name}")

    def close(self) -> None:
        self.process.communicate()

    def checked(self, name: str, *arguments: bytes | int) -> None:
        assert self.call(name, *arguments) == 0, name

    def call(self, name: str, *arguments: bytes | int) -> int:
        """Records as bytes, anything else as the address of a tensor's memory, or as a number."""
        pieces: list[bytes] = [record for record in arguments if isinstance(record, bytes)]
        records = len(pieces)
        numbers: dict[int, int] = {}  # of the piece that begins at an address

        def found(address: int) -> tuple[int, int] | None:
            start = self.addresses.start_of(address)
            if start is None:
                return None
            if start not in numbers:
                numbers[start] = len(pieces)
                pieces.append(ctypes.string_at(start, self.addresses.storages[start].nbytes()))
            return numbers[start], address - start

        relocated = []
        for record in range(records):
            for i, field in enumerate(struct.unpack(f"={len(pieces[record]) // 8}q", pieces[record])):
                place = (OUTSIDE, 0) if field and field == outside_matmul(self.dtype) else found(field)
                if place is not None:
                    relocated.append((record, 8 * i, *place))
        order = iter(range(records))
        given = [(next(order), 0) if isinstance(a, bytes) else found(a) or (NUMBER, a) for a in arguments]

        message = [_numbers(len(name)), name.encode(), _numbers(len(pieces))]
        for piece in pieces:
            message += [_numbers(len(piece)), piece]
        message += [_numbers(len(relocated)), *(_numbers(*r) for r in relocated)]
        message += [_numbers(len(given)), *(_numbers(*g) for g in given)]
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(b"".join(message))
        self.process.stdin.flush()
        result, whole = struct.unpack("=2q", self._read(16))
        back = [self._read(len(piece)) for piece in pieces]
        assert whole, f"{name} wrote beside its memory"
        for start, number in numbers.items():
            ctypes.memmove(start, back[number], len(back[number]))
        return result

    def _read(self, size: int) -> bytes:
        assert self.process.stdout is not None
        got = self.process.stdout.read(size)
        assert len(got) == size, f"the driver ended: {self.process.wait()}"
        return got


def _numbers(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}q", *numbers)
