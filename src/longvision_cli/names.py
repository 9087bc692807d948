"""The nearest of the names that there are, for the one sentence that a mistyped one is answered with."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """-> "did you mean …?", or the names there are; dotted ones with the same last word in another section first."""
    names = list(dict.fromkeys(known))
    bare = {name.lstrip("-"): name for name in names}  # what all options share says nothing
    given = given.lstrip("-")
    same = [name for key, name in bare.items() if key.rpartition(".")[2] == given.rpartition(".")[2]]
    close = [bare[key] for key in get_close_matches(given, bare, n=3, cutoff=cutoff)]
    if near := list(dict.fromkeys([*same, *close]))[:3]:
        return f"did you mean {' or '.join(near)}?"
    return f"expected one of {', '.join(names)}" if len(names) < 25 else "--help lists those there are"
