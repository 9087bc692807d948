"""What the values of a set's masks can mean where no class file says it: numbers of classes, or a reason to ask."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longvision.data.io.class_files import ClassFile
from longvision.data.io.colours import spread_colours
from longvision.data.io.masks import UnreadableMask, as_grey, read_mask
from longvision.data.io.threads import in_threads
from longvision.data.problems import counted, listing
from longvision.data.sources.pairs import is_chase
from longvision.errors import UserError
from longvision.types import IGNORE, Colour

MOST = 200  # classes without names; smooth edges have nearly all values
OBJECTS = 4  # the number from which objects that are counted image by image can be told from classes
NAMED_ONES = "a classes_file that says what the values mean"
BINARY = 'a classes_file with "binary": true where values from 128 are the one class and those below the other'


@dataclass(frozen=True)
class Seen:
    """The values in a mask file, and their colours: a palette's, or greys."""

    file: str
    colours: dict[int, Colour]
    bits: int
    lossy: bool

    @property
    def values(self) -> frozenset[int]:
        return frozenset(self.colours)


def unnamed_classes(masks: Sequence[str], ignored: tuple[int, ...], reduce_zero_label: bool, root: Path) -> ClassFile:
    """Numbered classes, as many as the values of the masks ask for.

    Raises:
        UserError: values that cannot all be classes, or may mean something else.
    """
    seen = [one for one in in_threads(_look, masks) if one is not None]
    values = set().union(*(one.values for one in seen)) - set(ignored)
    if is_chase(root) or _is_binary(seen, ignored):
        return _numbered(2, binary=True)
    _refuse_lossy(seen)
    _refuse_other_palettes(seen)
    if IGNORE not in ignored:
        mixed_meanings({one.file: one.values - set(ignored) for one in seen})
    _refuse_other_depths(seen, values)
    first = int(reduce_zero_label)
    classes = sorted(values - {IGNORE} - ({0} if reduce_zero_label else set()))
    if not classes or classes[-1] == first == 0:
        if not seen:
            raise UserError(f"none of the {counted(len(masks), 'mask')} of {root} can be read: give masks as PNG")
        raise UserError(
            f"the masks of {root} hold {_some(values) or 'no value'} alone: two classes are needed; give {NAMED_ONES}"
        )
    _refuse_gaps(classes, first, root)
    _refuse_counted_objects(seen, ignored, root)
    return _numbered(classes[-1] + 1 - first)


def _numbered(count: int, binary: bool = False) -> ClassFile:
    return ClassFile([f"class {number}" for number in range(count)], spread_colours(count), binary=binary)


def _look(mask: str) -> Seen | None:
    """None for what cannot be read: `check` tells of it."""
    try:
        file = read_mask(mask)
    except UnreadableMask:
        return None
    grey = file.values.max(-1) if file.lossy and file.values.ndim == 3 else as_grey(file.values, mask)
    present = np.unique(grey).tolist()
    white = 255 if file.bits == 1 else 1
    colours: dict[int, Colour] = {}
    for value in present:
        red, green, blue = (value * white,) * 3 if file.palette is None else file.palette[value].tolist()
        colours[value] = red, green, blue
    return Seen(mask, colours, file.bits, file.lossy)


def _is_binary(seen: Sequence[Seen], ignored: tuple[int, ...]) -> bool:
    """Of 0 and 255 alone; a file of one bit has black and white too."""
    if any(one.lossy for one in seen) or set(ignored) & {0, IGNORE}:
        return False
    eight = set().union(*(one.values for one in seen if one.bits != 1))
    return eight - set(ignored) == {0, IGNORE}


def _refuse_lossy(seen: Sequence[Seen]) -> None:
    if found := [one for one in seen if one.lossy]:
        raise UserError(
            f"masks are compressed with loss, which changes their values ({listing([str(one.file) for one in found])}; "
            f"the first has {len(found[0].values)}): give masks as PNG, or {BINARY}"
        )


def _refuse_other_palettes(seen: Sequence[Seen]) -> None:
    """One number is one colour in all files."""
    first: dict[int, Seen] = {}
    for one in seen:
        for value, colour in one.colours.items():
            other = first.setdefault(value, one)
            if other.colours[value] != colour and one.bits != 1 != other.bits:
                raise UserError(
                    f"the number {value} has the colour {other.colours[value]} in {other.file} and {colour} in "
                    f"{one.file}: give a classes_file with the colour of each class"
                )


def _refuse_other_depths(seen: Sequence[Seen], values: set[int]) -> None:
    """White of one bit is class 1 beside 0 and 1, and nobody knows what beside others."""
    found = [one for one in seen if one.bits == 1 and 1 in one.values]
    if found and len(found) < len(seen) and not values <= {0, 1}:
        raise UserError(f"{found[0].file} is black and white, other masks hold more values: write all the same way")


def mixed_meanings(values: Mapping[str, frozenset[int]]) -> None:
    """Values of each mask. Raises UserError where 255 is the one class in some and numbers are in others: beside other
    numbers 255 marks pixels that do not count, and where it never stands beside any it may be a class."""
    alone = [mask for mask, found in values.items() if IGNORE in found and found <= {0, IGNORE}]
    beside = any(IGNORE in found and not found <= {0, IGNORE} for found in values.values())
    numbers = [mask for mask, found in values.items() if IGNORE not in found and not found <= {0}]
    if alone and numbers and not beside:
        raise UserError(
            f"{alone[0]} holds {_some(values[alone[0]])}, {numbers[0]} {_some(values[numbers[0]])}: give data.ignore "
            f"{IGNORE} where it marks pixels that do not count, or {BINARY}"
        )


def refuse_white_alone(values: Mapping[str, frozenset[int]], classes: Sequence[str]) -> None:
    """Values of masks that a model of numbered classes is to be measured on. Raises UserError where they are 0 and 255
    alone, two classes for those who draw black and white."""
    white = [mask for mask, found in values.items() if IGNORE in found]
    if white and set().union(*values.values()) <= {0, IGNORE}:
        raise UserError(
            f"the masks hold 0 and {IGNORE} alone ({white[0]}), and the {len(classes)} classes of the model have the "
            f"numbers 0 to {len(classes) - 1}: write the model's numbers, or give data.ignore {IGNORE} where {IGNORE} "
            "marks pixels that do not count"
        )


def _refuse_gaps(classes: list[int], first: int, root: Path) -> None:
    missing = next((number for number in range(first, classes[-1]) if number not in set(classes)), None)
    if missing is not None and first == 0 and missing == 0:
        raise UserError(
            f"the masks of {root} hold {_some(classes)} and no 0: give data.reduce_zero_label true where {classes[0]} "
            f"is the first class, or {NAMED_ONES}"
        )
    if missing is not None:
        raise UserError(
            f"the masks of {root} hold {_some(classes)}, and no {missing}: give {NAMED_ONES}, or {BINARY}; "
            "data.ignore names a value to leave out"
        )
    if len(classes) > MOST:
        raise UserError(
            f"the masks of {root} hold {len(classes)} values, {_some(classes)}: give {NAMED_ONES}, or {BINARY}"
        )


def _refuse_counted_objects(seen: Sequence[Seen], ignored: tuple[int, ...], root: Path) -> None:
    """Numbers of objects begin anew in each image and leave none out; those of classes do."""
    found = [numbers for one in seen if (numbers := sorted(one.values - {IGNORE, *ignored}))]
    highest = {numbers[-1] for numbers in found}
    if len(highest) < 3 or max(highest) < OBJECTS:
        return
    if all(numbers == list(range(numbers[0], len(numbers) + numbers[0])) and numbers[0] <= 1 for numbers in found):
        raise UserError(
            f"the masks of {root} seem to number objects, each mask from 1 on (the highest are "
            f"{_some(sorted(highest))}): give {NAMED_ONES} where they are classes; objects are the detection sources'"
        )


def _some(values: Iterable[int]) -> str:
    return listing([str(value) for value in sorted(values)])
