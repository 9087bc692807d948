"""Where a command's files go: nothing is ever overwritten."""

from pathlib import Path

from longvision.errors import ExistingFileError


def free_folder(given: str | None, pattern: str, option: str) -> Path:
    """A folder that does not exist yet, or is empty; the first free one of a pattern such as "data-{}" where none is
    given. Raises ExistingFileError for any other."""
    if given is None:
        number = 1
        while Path(pattern.format(number)).exists():
            number += 1
        return Path(pattern.format(number))
    path = Path(given)
    for place in path.parents:
        if place.exists() and not place.is_dir():
            raise ExistingFileError(f"{option} {given}: {place} is a file, not a folder: give another {option}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ExistingFileError(f"{given} exists already and is not overwritten: give another {option}")
    return path
