"""In which folders the images of each split lie, and in which their masks: the usual layouts in any spelling."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from longvision.data.io.listing import files_in, folders_in, has_image_name, list_files
from longvision.data.leftovers import unused
from longvision.data.problems import listing
from longvision.data.sources.mask_lists import LISTS
from longvision.data.splits import choose, read_name
from longvision.errors import UserError
from longvision.types import Split

LAYOUTS = (
    "images/train with masks/train (or annotations/train), train/images with train/masks, train with trainannot, "
    "images with masks, JPEGImages with SegmentationClass, or CHASEDB1's Image_01L.jpg with Image_01L_1stHO.png"
)
Places = dict[Split, tuple[Path, Path]]  # folders of images and of masks


def find_places(root: Path, notes: list[str], train_needed: bool = True, classes_file: str | None = None) -> Places:
    """Where each split lies; what is not used, the class file aside, is added to `notes`.

    Raises UserError where that cannot be told.
    """
    folders = _named(root)
    images = [path for path in folders if "masks" not in read_name(path).kinds]
    masks = [path for path in folders if "masks" in read_name(path).kinds]
    chosen = choose(_filled(root, [path for path in images if read_name(path).reading]), str(root))
    places: dict[Split, tuple[str, str]] = {}
    for split, path in chosen.names.items():
        if found := _masks_of(root, path, masks):
            places[split] = path, found
        elif split == "test":
            notes.append(f"{root / path} has no folder of masks beside it: its images are not used")
        else:
            raise UserError(f"{root / path} has no folder of masks beside it: expected {LAYOUTS}")
    notes += chosen.notes
    if "train" not in places:
        if places and train_needed:
            raise UserError(f"{root} has {listing([path for path, _ in places.values()])}, but no training images")
        places = places or {"train": _alone(root, images, masks)}
    notes += _not_used(root, [path for pair in places.values() for path in pair], classes_file)
    return {split: (root / path, root / mask) for split, (path, mask) in places.items()}


def _named(root: Path) -> list[str]:
    """Folders whose names say a split, images or masks, and nothing else; of one with such folders in it, these."""
    found = []
    for name in folders_in(root):
        if not _says(name):
            continue
        below = [f"{name}/{inner}" for inner in folders_in(root / name) if _says_more(name, inner)]
        found += below or [name]
    return found


def _says(path: str) -> bool:
    name = read_name(path)
    return not name.rest and (name.reading is not None or bool(name.kinds))


def _says_more(outer: str, inner: str) -> bool:
    """The split, where the outer folder says the kind; the kind, where it says the split."""
    if not _says(inner):
        return False
    split, kinds = read_name(outer).reading, read_name(inner).kinds
    return bool(kinds) if split else read_name(inner).reading is not None


def _filled(root: Path, paths: Sequence[str]) -> list[str]:
    """Of several for one split, those with images in them."""
    readings = [read_name(path).reading for path in paths]
    return [
        path
        for path, reading in zip(paths, readings, strict=True)
        if readings.count(reading) == 1 or _holds_images(root / path)
    ]


def _masks_of(root: Path, images: str, masks: Iterable[str]) -> str | None:
    split = read_name(images).reading
    return _only(root, [path for path in masks if read_name(path).reading == split], f"masks of {images}")


def _alone(root: Path, images: Sequence[str], masks: Sequence[str]) -> tuple[str, str]:
    """Images and masks without a split."""
    image = _only(root, [path for path in images if not read_name(path).reading], "images")
    mask = _only(root, [path for path in masks if not read_name(path).reading], "masks")
    if image is None or mask is None:
        found = f"only {listing(there)}" if (there := folders_in(root)) else "no folders"
        raise UserError(f"{root} has no images with masks, {found}: expected {LAYOUTS}")
    return image, mask


def _only(root: Path, paths: list[str], what: str) -> str | None:
    if len(paths) > 1:
        paths = [path for path in paths if _holds_images(root / path)]
    if len(paths) > 1:
        raise UserError(f"{root} has {' and '.join(paths)}: each could hold the {what}; move away those not meant")
    return paths[0] if paths else None


def _holds_images(folder: Path) -> bool:
    return any(map(has_image_name, list_files(folder).files))


def _not_used(root: Path, used: Sequence[str], classes_file: str | None) -> list[str]:
    outer = {path.partition("/")[0] for path in used}
    if (root / LISTS).is_dir():
        outer.add(LISTS.parts[0])
    files = [
        name for name in files_in(root) if not classes_file or (root / name).absolute() != Path(classes_file).absolute()
    ]
    lines = unused(root, files, [name for name in folders_in(root) if name not in outer])
    for name in sorted(outer - set(used) - {LISTS.parts[0]}):
        inner = [below for below in folders_in(root / name) if f"{name}/{below}" not in used]
        lines += unused(root / name, files_in(root / name), inner)
    return lines
