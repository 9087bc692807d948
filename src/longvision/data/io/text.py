"""Reading text files in the encodings that people have: class files, lists, XML, JSON."""

import codecs
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from longvision.errors import MissingFileError, UserError, user_paths

# the longer marks first: UTF-32's begins as UTF-16's does
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
BINARY = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
WESTERN = "cp1252"  # Latin-1 with Windows' quotes and dashes
# Letters of Western languages stand alone or in pairs; other alphabets, read as Western, come in rows or as signs.
NOT_WESTERN = re.compile(r"[^\x00-\x7f]{3}|[^\x00-\x7fÀ-ÖØ-öø-ÿŒœŠšŽžŸ°²³µß’‘“”–—…€«»§]")
NAMED = 5  # words that a note quotes
DECLARED = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")


def read_text(path: str | Path, notes: list[str]) -> str:
    """A text file, without its byte order mark; lines end with \\n.

    UTF-8, or UTF-16 and UTF-32 with their marks. Another file is read as Western European (Windows-1252) where its
    letters fit, which is told in `notes`.

    Raises:
        MissingFileError: no such file.
        UserError: no text, or one whose encoding is not certain.
    """
    return decode(read_bytes(path), str(path), notes)


def read_bytes(path: str | Path) -> bytes:
    """Raises MissingFileError, and UserError for what cannot be read."""
    if not Path(path).exists():
        raise MissingFileError(f"{path} does not exist: give the path of a text file")
    with user_paths():
        return Path(path).read_bytes()


def decode(content: bytes, name: str, notes: list[str]) -> str:
    """The bytes of the text file `name` as `read_text` reads them."""
    mark, encoding = next(((mark, of) for mark, of in MARKS if content.startswith(mark)), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        if mark:
            raise UserError(f"{name} begins as {encoding} and is not ({error.reason}): save it as UTF-8") from error
        text = _western(content, name, notes, error)
    if found := BINARY.search(text):
        raise UserError(f"{name} is no text in UTF-8: it holds the byte {ord(found[0]):#04x}; give a text file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _western(content: bytes, name: str, notes: list[str], error: UnicodeDecodeError) -> str:
    line = content.count(b"\n", 0, error.start) + 1
    try:
        text = content.decode(WESTERN)
    except UnicodeDecodeError:
        text = "\ufffd" * 3
    if NOT_WESTERN.search(text):
        raise UserError(
            f"{name}, line {line}: the byte {content[error.start]:#04x} is no text in UTF-8, and its encoding is not "
            "certain: save the file as UTF-8"
        ) from error
    words = list(dict.fromkeys(word for word in re.findall(r"\w+", text) if not word.isascii()))
    quoted = ", ".join(words[:NAMED]) + (", …" if len(words) > NAMED else "")
    notes.append(f"{name} is not UTF-8 and is read as Western European ({quoted}): save it as UTF-8 if this is wrong")
    return text


def parse_xml(path: Path, notes: list[str]) -> ElementTree.Element:
    """The root of an XML file, in the encoding that it declares or else as `read_text` reads it.

    Raises:
        UserError: no XML, and why.
    """
    content = read_bytes(path)
    try:
        return ElementTree.fromstring(_declared(content) or decode(content, str(path), notes).lstrip())
    except (ElementTree.ParseError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not XML: {error}") from error


def _declared(content: bytes) -> str | None:
    """Text by the encoding in the first line; None where that says none, or cannot be right: what is written as
    UTF-16 cannot be read byte by byte, though programs for Windows say so of UTF-8."""
    found = DECLARED.match(content)
    if found is None or found[1].lower().startswith((b"utf", b"ucs")):
        return None
    try:
        return content.decode(found[1].decode("ascii")).lstrip()
    except (LookupError, UnicodeError):
        return None
