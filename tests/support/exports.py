"""The names that a compiled file gives to others: objects and libraries of Windows (COFF, PE) and macOS (Mach-O)."""

import struct
from pathlib import Path


def exports(path: Path) -> set[str]:
    data = path.read_bytes()
    if data[:4] == b"\xcf\xfa\xed\xfe":
        return _mach(data)
    if data[:2] == b"MZ":
        return _library(data)
    return _object(data)


def _name(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()


def _mach(data: bytes) -> set[str]:
    """External and defined, in the symbol table of a 64-bit file; C names begin with an underscore there."""
    EXTERNAL, PRIVATE, KIND, IN_A_SECTION = 0x01, 0x10, 0x0E, 0x0E
    found, at = set(), 32
    for _ in range(struct.unpack_from("<I", data, 16)[0]):
        command, size = struct.unpack_from("<2I", data, at)
        if command == 2:  # LC_SYMTAB
            symbols, count, strings, _ = struct.unpack_from("<4I", data, at + 8)
            for i in range(count):
                name, kind = struct.unpack_from("<IB", data, symbols + 16 * i)
                if kind & EXTERNAL and not kind & PRIVATE and kind & KIND == IN_A_SECTION:
                    found.add(_name(data, strings + name).removeprefix("_"))
        at += size
    return found


def _object(data: bytes) -> set[str]:
    """External and defined, in the symbol table: the linker exports them all, where none is marked."""
    EXTERNAL = 2
    symbols, count = struct.unpack_from("<2I", data, 8)
    strings, found, i = symbols + 18 * count, set(), 0
    while i < count:
        at = symbols + 18 * i
        section, storage, more = struct.unpack_from("<h2xBB", data, at + 12)
        if storage == EXTERNAL and section > 0:
            zeros, offset = struct.unpack_from("<2I", data, at)
            found.add(data[at : at + 8].rstrip(b"\0").decode() if zeros else _name(data, strings + offset))
        i += 1 + more
    return found


def _library(data: bytes) -> set[str]:
    """The names in the export directory of a 64-bit library."""
    header = struct.unpack_from("<I", data, 0x3C)[0]
    sections, optional_size = struct.unpack_from("<H12xH", data, header + 6)
    table = header + 24 + optional_size

    def at(address: int) -> int:
        """Where in the file this address of the loaded library stands."""
        for i in range(sections):
            size, begin, in_file, start = struct.unpack_from("<4I", data, table + 40 * i + 8)
            if begin <= address < begin + max(size, in_file):
                return address - begin + start
        raise ValueError(f"no section holds {address:#x}")

    directory = at(struct.unpack_from("<I", data, header + 24 + 112)[0])
    count, names = struct.unpack_from("<I4xI", data, directory + 24)
    return {_name(data, at(address)) for address in struct.unpack_from(f"<{count}I", data, at(names))}
