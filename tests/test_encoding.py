"""Text files are UTF-8, whatever the locale: class names are in them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import longvision

SOURCES = Path(longvision.__file__).parent.parent
OTHERS = {"Image", "Run", "os", "tarfile"}  # whose `open` is none of a text file
OURS = "read_text"  # called by itself, the reader of all encodings in data/io/text.py


def text_files_opened(file: Path) -> Iterator[ast.Call]:
    """Calls of open, Path.open, read_text and write_text, but for those in binary mode."""
    for call in ast.walk(ast.parse(file.read_text("utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        name, of = getattr(call.func, "attr", getattr(call.func, "id", "")), getattr(call.func, "value", None)
        binary = {"rb", "wb", "xb", "r+b"} & {getattr(argument, "value", None) for argument in call.args}
        if getattr(call.func, "id", "") == OURS:
            continue
        if name in ("open", "read_text", "write_text") and getattr(of, "id", "") not in OTHERS and not binary:
            yield call


def names_its_encoding(call: ast.Call) -> bool:
    return "encoding" in [keyword.arg for keyword in call.keywords] or "'utf-8'" in map(ast.unparse, call.args)


def test_every_text_file_is_opened_as_utf_8():
    files = [*SOURCES.glob("longvision/**/*.py"), *SOURCES.glob("longvision_cli/**/*.py")]
    calls = {f"{file.name}:{call.lineno}": call for file in files for call in text_files_opened(file)}
    assert len(calls) > 10
    assert [place for place, call in calls.items() if not names_its_encoding(call)] == []
