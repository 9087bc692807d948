"""Names as people give them, made fit for a terminal, a font and a UTF-8 file. Loads no library."""

import shlex
import unicodedata

ESCAPED = ("Cc", "Cs", "Zl", "Zp", "Cf")  # control characters, bytes that are no UTF-8, line ends, invisible marks
JOINERS = "\u200c\u200d"  # belong to Persian words and to emoji


def printable(name: str) -> str:
    r"""The name in one line that can be encoded: a line end becomes \n, a byte that is no UTF-8 \xff."""
    return "".join(_escaped(letter) if _is_escaped(letter) else letter for letter in name)


def as_text(name: str) -> str:
    """The name of a file as text: composed (NFC, so that é is one letter whoever wrote it), bytes that are no UTF-8
    escaped, as no text file holds them."""
    composed = unicodedata.normalize("NFC", name)
    return "".join(_escaped(letter) if unicodedata.category(letter) == "Cs" else letter for letter in composed)


def command_line(*words: object) -> str:
    """What to type, with quotes where a shell needs them."""
    return shlex.join(["longvision", *map(str, words)])


def one_line(text: str) -> str:
    """A sentence with names in it: printable, white space as single blanks."""
    return printable(" ".join(text.split()))


def _is_escaped(letter: str) -> bool:
    return unicodedata.category(letter) in ESCAPED and letter not in JOINERS


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte that it could not decode
        return f"\\x{code - 0xDC00:02x}"
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")
