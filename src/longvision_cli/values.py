"""A dataclass of options <-> dotted keys with their values. jsonargparse reads each value by its field's type; which
keys there are, and the sentence about a wrong one, come from the dataclass alone."""

import re
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import jsonargparse

from longvision.errors import UserError

IN_WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a word", dict: "NAME: VALUE in braces",
    tuple: "a list in brackets", list: "a list in brackets", type(None): "null",
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One value that can be set.

    Args:
        name: dotted, as model.lr.
        type: what it must be.
        default: MISSING where one must be given.
        help: what its dataclass's docstring says of it.
    """

    name: str
    type: Any
    default: Any
    help: str = ""

    @property
    def holds_names(self) -> bool:
        """Whether it is a table of any names, so that NAME.ITEM sets one of them."""
        return any(get_origin(kind) is dict for kind in _kinds(self.type))

    @property
    def _is_list(self) -> bool:
        kinds = list(_kinds(self.type))
        return str not in kinds and any(get_origin(kind) in (tuple, list) for kind in kinds)

    def read(self, value: Any, is_text: bool = False) -> Any:
        """A value of a file, or the text of a command line, as the type has it. Raises UserError."""
        parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
        parser.add_argument("--value", type=self.type)
        for way in self._ways(value, is_text):
            try:
                read = parser.parse_args([f"--value={way}"]) if is_text else parser.parse_object({"value": way})
                return read.value
            except (jsonargparse.ArgumentError, TypeError):
                continue
        raise UserError(f"{self.name} is {value!r}: expected {in_words(self.type)}")

    def _ways(self, value: Any, is_text: bool) -> list[Any]:
        """A value as it is written and, of a list, in the brackets that were left out."""
        is_bracketed = value.startswith("[") if is_text else isinstance(value, list)
        if not self._is_list or is_bracketed or value == "":
            return [value]
        return [value, f"[{value}]" if is_text else [value]]


def keys_of(options: type, section: str, default: Any = None) -> Iterator[Key]:
    """Every key of a dataclass, those of dataclasses within it too; `default` is one that holds the defaults."""
    hints, docs = get_type_hints(options), _docs_of(options)
    for each in fields(options):
        name, kind = f"{section}.{each.name}", hints[each.name]
        value = _default_of(each) if default is None else getattr(default, each.name)
        if is_dataclass(kind):
            yield from keys_of(kind, name, value)  # type: ignore[arg-type]
        else:
            yield Key(name, kind, value, docs.get(each.name, ""))


def _default_of(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _docs_of(options: type) -> dict[str, str]:
    """The lines "name: what it is" under "Args:" in the docstrings of a class and of those it inherits from."""
    docs = {}
    for cls in reversed(options.__mro__):
        _, _, args = (cls.__doc__ or "").partition("Args:\n")
        # lines that go on are indented further; by how much depends on the version of Python
        for _, name, text in re.findall(r"^( *)(\w+): (.*(?:\n\1 +\S.*)*)", args, re.MULTILINE):
            docs[name] = " ".join(text.split())
    return docs


def build(options: type, section: str, values: dict[str, Any]) -> Any:
    """The dataclass with the values that are given by their dotted keys. It may raise UserError itself."""
    given: dict[str, Any] = {}
    for each in fields(options):
        name = f"{section}.{each.name}"
        if name in values:
            given[each.name] = values[name]
        elif inner := {key: value for key, value in values.items() if key.startswith(f"{name}.")}:
            given[each.name] = replace(_default_of(each), **{key[len(name) + 1 :]: inner[key] for key in inner})
    return options(**given)


def in_words(kind: Any) -> str:
    """A type as a user reads it: "one of 1, 3", "a whole number or null"."""
    kinds = list(_kinds(kind))
    if any(get_origin(one) is Literal for one in kinds):
        choices = [str(value) for one in kinds if get_origin(one) is Literal for value in get_args(one)]
        others = [IN_WORDS[get_origin(one) or one] for one in kinds if get_origin(one) is not Literal]
        return f"one of {', '.join(dict.fromkeys([*choices, *others]))}"
    return " or ".join(dict.fromkeys(IN_WORDS[get_origin(one) or one] for one in kinds))


def plain(value: Any) -> Any:
    """A dataclass, and what is in it, as YAML holds it."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def _kinds(kind: Any) -> Iterator[Any]:
    """The members of a union, or the type alone."""
    if get_origin(kind) in (Union, types.UnionType):
        for one in get_args(kind):
            yield from _kinds(one)
    else:
        yield kind
