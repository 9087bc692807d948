"""Pascal VOC's lists of the images that have masks: ImageSets/Segmentation/train.txt, val.txt."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from longvision.data.io.text import read_text
from longvision.data.problems import counted, listing, refuse
from longvision.data.sources.voc_files import find_lists
from longvision.text import as_text
from longvision.types import Split

LISTS = Path("ImageSets", "Segmentation")
Pair = TypeVar("Pair", bound=tuple[str, str | None])


def by_lists(root: Path, pairs: Mapping[str, Pair], notes: list[str]) -> dict[Split, list[Pair]]:
    """Name -> image and mask, of all that there are -> those of each split's list, in its order. A test list without
    masks is not used. Raises UserError for names without an image."""
    splits: dict[Split, list[Pair]] = {}
    for split, stem in find_lists(root / LISTS, notes).items():
        file = root / LISTS / f"{stem}.txt"
        names = list(
            dict.fromkeys(as_text(line.strip()) for line in read_text(file, notes).split("\n") if line.strip())
        )
        refuse([name for name in names if name not in pairs], f"names in {file} are no image's", "correct the list")
        found = [pairs[name] for name in names]
        if split == "test" and not any(mask for _, mask in found):
            notes.append(f"none of the {counted(len(names), 'image')} of {file} has a mask: it is not used")
        else:
            splits[split] = found
    listed = {image for found in splits.values() for image, _ in found}
    left = [Path(image).name for image, mask in pairs.values() if mask and image not in listed]
    if left:
        notes.append(
            f"{counted(len(left), 'mask')} of images that no list in {root / LISTS} names ({listing(left)}): not used"
        )
    return splits
