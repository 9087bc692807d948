"""Where a command's files go: nothing is ever overwritten."""

from pathlib import Path

from longvision.files import check_new_folder


def free_folder(given: str | None, pattern: str, option: str) -> Path:
    """A folder that does not exist yet, or is empty; the first free one of a pattern such as "data-{}" where none is
    given. Raises ExistingFileError for any other."""
    if given is None:
        number = 1
        while Path(pattern.format(number)).exists():
            number += 1
        return Path(pattern.format(number))
    check_new_folder(given, option)
    return Path(given)
