"""The ids of a COCO set's images, which a run's folder holds for prediction. Loads no torch.

They are too many for the header of the weights, which are published without the names of the images they learnt from.
"""

import json
from pathlib import Path

from longvision.errors import UserError
from longvision.files import written_beside

FILE = "coco-ids.json"


def write_image_ids(folder: Path, ids: dict[str, int]) -> None:
    """`ids` as of `CocoIds.images`. A run that went on with changed data writes them again."""
    with written_beside(folder / FILE, overwrite=True) as beside:
        beside.write_text(json.dumps(ids, indent=0), encoding="utf-8")


def read_image_ids(folder: Path) -> dict[str, int]:
    """Of a run's folder; {} where it has none. Raises UserError for what `write_image_ids` did not write."""
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not are_image_ids(found):
        raise UserError(
            f"{path} is not what a run writes of its images' ids, an object of names and whole numbers: restore it, or "
            "remove it to number images anew"
        )
    return found


def are_image_ids(value: object) -> bool:
    return isinstance(value, dict) and all(type(number) is int for number in value.values())
