"""What a look at some of the training images finds: how bright they are, and what is to be told of that."""

from typing import Any

from longvision.data.io.ranges import (
    MOST_IMAGES,
    look_at,
    mean_and_std,
    notes_of,
    notes_of_values,
    range_of,
    seen_in,
    values_of,
)
from longvision.errors import UserError


def found_in_training_images(data: Any) -> dict[str, Any]:
    """The range of their values where they have more than 8 bits, and their mean where there is no usual one, if
    it is not given; what is to be said of them goes into the source's notes. None is decoded in vain."""
    file_of = getattr(data.images("train"), "file_of", lambda row: None)  # a set of one's own may have none
    files = [file_of(row) for row in data.examples("train", MOST_IMAGES)]
    looks = look_at([file for file in files if file is not None], data.channels)
    if not looks:
        return {}
    name, given = data.source.name, data.input.range
    deep = [look for look in looks if look.facts.deep]
    data.source.notes.extend(notes_of(looks, given, name))
    if deep and getattr(data.augment, "rand_augment", None):
        raise UserError("rand_augment works on images of 8 bits: switch it off (--data.augment.rand_augment null)")
    measures_mean = not (data.input.mean and data.input.std)
    values = values_of(looks if measures_mean else [] if given else deep, data.channels)
    found: dict[str, Any] = {"range": given}
    if values or not deep:
        found["seen"] = seen_in(values, len(deep) < len(looks))
    if given is None and (range := range_of(values)) is not None:
        data.source.notes.extend(notes_of_values(values, range, name))
        found["range"] = range
    if measures_mean:
        mean, std = mean_and_std(values, found["range"])
        found |= {"mean": data.input.mean or mean, "std": data.input.std or std}
        data.source.notes.append(f"{name}: measured mean {list(mean)} and std {list(std)}")
    return found
