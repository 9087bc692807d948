"""Where a command's images lie, and where its files go: nothing is ever overwritten."""

from collections.abc import Sequence
from pathlib import Path

from longvision.data.io.listing import has_image_name
from longvision.errors import UserError
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


def find_named_images(given: Sequence[str]) -> list[Path]:
    """Files as they are given, and the images below folders. Raises UserError for a file that is no image, and for a
    folder that holds none."""
    from longvision.data.io.images import find_images, is_image

    images = []
    for name in given:
        found, is_folder = find_images([name]), Path(name).is_dir()
        found = [path for path in found if has_image_name(path) or (not is_folder and is_image(path))]
        if not found:
            said = "holds no images" if is_folder else "is no image"
            raise UserError(f"{name} {said}: give image files, or folders of them")
        images += found
    return images
