"""Where the JSON files of COCO's format and their images lie, however the splits are called."""

from pathlib import Path

from longvision.data.io.listing import ending, files_in, folders_in, has_image_name
from longvision.data.leftovers import unused
from longvision.data.problems import listing, require_folder
from longvision.data.splits import choose, read_name
from longvision.errors import MissingFileError, UserError
from longvision.types import Split

LabelsAndImages = tuple[str, str]  # a JSON file and the folder of its images
NOTHING = frozenset(["instances", "instance", "coco", "default", "bbox", "bboxes", "detection", "objects", "result"])


def find_files(
    root: Path, given: dict[Split, LabelsAndImages | None], notes: list[str], all_needed: bool = True
) -> dict[Split, tuple[Path, Path]]:
    """The JSON file of each split and the folder of its images: as given, or as their names say.

    `notes` gets what is told of the names. Those that train and validate must be there if `all_needed`, else any.
    Raises UserError.
    """
    require_folder(root, "give a folder with annotations/ and folders of images")
    files = {split: (root / pair[0], root / pair[1]) for split, pair in given.items() if pair is not None}
    found = [path for path in _json_files(root) if _reading(path) not in files]
    for split in given:
        if len(several := [path for path in found if _reading(path) == split]) > 1:
            raise _not_one(root, split, several)
    chosen = choose(found, str(root), NOTHING)
    notes += chosen.notes
    for split, path in chosen.names.items():
        files[split] = root / path, _images_of(root, path, split)
    missing = [split for split in given if split != "test" and split not in files]
    if missing and (all_needed or not files):
        raise _not_one(root, missing[0], [])
    for _, folder in files.values():
        require_folder(folder, "give the folder that holds the images")
    if all(pair is None for pair in given.values()):  # who names the files has other folders there on purpose
        notes += _not_used(root, files)
    return files


def _not_used(root: Path, files: dict[Split, tuple[Path, Path]]) -> list[str]:
    used = {path.relative_to(root).parts[0] for pair in files.values() for path in pair}
    folders = [name for name in folders_in(root) if name not in used]
    return unused(root, [name for name in files_in(root) if name not in used], folders)


def _json_files(root: Path) -> list[str]:
    """Those whose names say a split and nothing else, or that lie in a split's folder."""
    folders = folders_in(root)
    labels = [name for name in folders if read_name(name).kinds == {"masks"} and not read_name(name).reading]
    splits = [name for name in folders if read_name(name).is_split]
    paths = [
        f"{folder}/{name}" if folder else name
        for folder in ["", *labels, *splits]
        for name in files_in(root / folder)
        if ending(name) == ".json"
    ]
    return [path for path in paths if _reading(path) and not read_name(_stem(path), NOTHING).rest]


def _stem(path: str) -> str:
    return path.rpartition(".")[0]


def _reading(path: str) -> str | None:
    return read_name(_stem(path), NOTHING).reading


def _not_one(root: Path, split: Split, found: list[str]) -> UserError:
    where = f" ({listing(found)})" if found else ""
    return UserError(
        f"{root / 'annotations'} has {len(found)} files instances_{split}*.json{where}, expected one: "
        f"give data.{split}, its JSON file and the folder of its images"
    )


def _images_of(root: Path, path: str, split: Split) -> Path:
    """The folder called as the JSON file, or as its split in another spelling, or the folder of all images."""
    folder, _, name = _stem(path).rpartition("/")
    if folder and read_name(folder).reading:  # the JSON file lies in the split's folder
        inner = [below for below in folders_in(root / folder) if read_name(below).kinds == {"images"}]
        return root / folder / inner[0] if len(inner) == 1 else root / folder
    name = name.removeprefix("instances_")
    exact = [root / name, root / "images" / name]
    for place in exact:
        if place.is_dir():
            return place
    reading = read_name(name, NOTHING).reading
    others = [outer / below for outer in (root, root / "images") if outer.is_dir() for below in folders_in(outer)]
    spelled = [place for place in others if read_name(place.name).is_split and read_name(place.name).reading == reading]
    if len(spelled) == 1:
        return spelled[0]
    if not spelled and (root / "images").is_dir() and any(map(has_image_name, files_in(root / "images"))):
        return root / "images"
    if spelled:
        raise UserError(
            f"{root} has {listing([str(place) for place in spelled])}: each could hold the images of {path}; "
            f"give data.{split}, its JSON file and the folder of its images"
        )
    raise MissingFileError(
        f"neither {exact[0]} nor {exact[1]} is a folder: "
        f"put the images of {Path(path).name} there, or give data.{split}, its JSON file and the folder of its images"
    )
