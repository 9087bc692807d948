"""The nearest of the names that there are, for the one sentence that a mistyped one is answered with."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str, known: Iterable[str], cutoff: float = 0.5, otherwise: str = "") -> str:
    """-> "did you mean …?" with at most three names; where none is near, all of them, or what to do `otherwise`.

    Those with the same last word in another section come first, then those that go on after what was given or after
    something near it.
    """
    undashed = {name.lstrip("-"): name for name in known}  # the dashes, which all options share, say nothing
    given = given.lstrip("-")
    same = [key for key in undashed if key.rpartition(".")[2] == given.rpartition(".")[2]]
    longer = [key for key in undashed if key.startswith(given)]
    heads = {key[: len(given)]: key for key in reversed(undashed)}  # of names that begin alike the first one
    longer += [heads[head] for head in get_close_matches(given, heads, n=1, cutoff=0.8)]
    close = get_close_matches(given, undashed, n=3, cutoff=cutoff)
    if near := list(dict.fromkeys([*same, *longer, *close]))[:3]:
        return f"did you mean {' or '.join(undashed[key] for key in near)}?"
    return otherwise or f"expected one of {', '.join(undashed.values())}"
