"""Objects labelled as COCO does: one JSON file a split, boxes x, y, width, height, masks as polygons or run lengths."""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from longvision.data.io.colours import spread_colours
from longvision.data.problems import listing, refuse, refuse_many
from longvision.data.sources.base import ImageSet, Source
from longvision.data.sources.objects import (
    Box,
    ImageRecord,
    ObjectImages,
    SerializedList,
    as_target,
    check_files,
    cut_to,
    has_area,
    is_outside,
)
from longvision.errors import MissingFileError, UserError
from longvision.types import Split, Target

Json = dict[str, Any]
LabelsAndImages = tuple[str, str]  # a JSON file and the folder of its images
Kind = tuple[Callable[[Any], bool], str]  # whether a value is of it, and its name in a message

ID: Kind = (lambda value: isinstance(value, int | float | str), "a number or text")
TEXT: Kind = (lambda value: isinstance(value, str), "text")
SIDE: Kind = (lambda value: type(value) is int and value > 0, "a whole number of pixels, 1 or more")
BOX: Kind = (lambda value: _is_numbers(value, 4), "four numbers: x, y, width, height")
NEEDED: dict[str, dict[str, Kind]] = {
    "images": {"id": ID, "file_name": TEXT, "height": SIDE, "width": SIDE},
    "annotations": {"id": ID, "image_id": ID, "category_id": ID, "bbox": BOX},
    "categories": {"id": ID, "name": TEXT},
}
TRIANGLE = 6  # numbers; a polygon of fewer covers nothing, and one of four would be read as a box


class CocoImages(ObjectImages):
    """Image files with their objects, masks included where the source has them."""

    def __init__(self, records: SerializedList, has_masks: bool) -> None:
        super().__init__(records)
        self.has_masks = has_masks

    def target(self, record: ImageRecord) -> Target:
        masks_NHW = masks_of(record.shapes, record.height, record.width) if self.has_masks else None
        return as_target(record.number, record.boxes, record.labels, record.crowd, masks_NHW)


class CocoSource(Source[Target]):
    """The splits of a COCO set. Class numbers follow the ascending ids of the training file's categories.

    There are masks where every training annotation has a segmentation. Boxes up to a pixel over the edge of their
    image are cut there; objects without area are left out with a warning while they are at most 1 % of all.

    Args:
        path: a folder with annotations/instances_train*.json and instances_val*.json, instances_test*.json where it
            has labels, and the images in folders named as the files: train2017/, or images/train2017/.
        train: another JSON file and the folder of its images, both relative to `path`.
        val: the same for the images that validate.
        test: the same for the images that test.
    """

    def __init__(
        self,
        path: str | Path,
        train: LabelsAndImages | None = None,
        val: LabelsAndImages | None = None,
        test: LabelsAndImages | None = None,
    ) -> None:
        given: dict[Split, LabelsAndImages | None] = {"train": train, "val": val, "test": test}
        self.name = str(path)
        self.files = _files(Path(path), given)
        self.has_test = "test" in self.files
        training = load_json(self.files["train"][0])
        self.names = _names(training)
        _check_names(training, self.files["train"][0])
        self.numbers = {category: number for number, category in enumerate(_in_order(self.names))}
        self.classes = [self.names[category] for category in self.numbers]
        self.palette = spread_colours(len(self.classes))
        self.has_masks = _has_masks(training["annotations"], self.files["train"][0])
        if self.has_masks:
            mask_tools()  # to say now what is missing, not in a worker process
        self._parsed: dict[Split, Json] = {"train": training}  # COCO's takes gigabytes: let go at the first reading
        self._records: dict[Split, SerializedList] = {}

    def split(self, split: Split) -> ImageSet[Target]:
        return CocoImages(self._read(split), self.has_masks)

    def check(self, split: Split) -> None:
        """Raises UserError for labels that cannot be right, and for images that do not fit them."""
        check_files(self._read(split), str(self.files[split][0]))

    def _read(self, split: Split) -> SerializedList:
        if split not in self._records:
            file, folder = self.files[split]
            parsed = self._parsed.pop(split, None)
            self._parsed.clear()  # who reads another split first does not train
            content = parsed or load_json(file)
            _check_ids(content, file)
            self._check_categories(content, file)
            self._check_shapes(content, file)
            self._records[split] = SerializedList(self._annotated(content, file, folder))
        return self._records[split]

    def _check_categories(self, content: Json, file: Path) -> None:
        """Each category used is one that the file lists, and the one of that id in the training file."""
        listed = _names(content)
        missing = [
            f"annotation {one['id']}: category {one['category_id']}"
            for one in content["annotations"]
            if one["category_id"] not in listed
        ]
        refuse(missing, f"annotations in {file} have categories that it does not list", "add them to its categories")
        used = _in_order({one["category_id"] for one in content["annotations"]})
        other = [f"{category} {listed[category]}" for category in used if listed[category] != self.names.get(category)]
        train = self.files["train"][0]
        refuse(other, f"categories of {file} are not those of {train}", "give both files the same ids and names")

    def _check_shapes(self, content: Json, file: Path) -> None:
        """Each box lies in its image, and each segmentation, where they are used, can be drawn on it."""
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        outside, undrawn = [], []
        for one in content["annotations"]:
            size = sizes[one["image_id"]]
            if is_outside(xyxy(one["bbox"]), *size):
                outside.append(f"{_words(one)}: {one['bbox']} in {size[0]}x{size[1]}")
            if self.has_masks and not is_drawable(one.get("segmentation"), *size):
                undrawn.append(_words(one))
        refuse(outside, f"boxes in {file} lie outside their images", "correct them: x, y, width, height in pixels")
        refuse(
            undrawn,
            f"annotations in {file} have no segmentation that can be drawn",
            "expected polygons, or run lengths of their image's size",
        )

    def _annotated(self, content: Json, file: Path, folder: Path) -> list[ImageRecord]:
        """Every image, those without objects too."""
        records = {
            image["id"]: ImageRecord(str(folder / image["file_name"]), image["id"], image["height"], image["width"])
            for image in content["images"]
        }
        flat = []
        for one in content["annotations"]:
            record = records[one["image_id"]]
            box = cut_to(xyxy(one["bbox"]), record.height, record.width)
            if not has_area(box) or (self.has_masks and is_empty(one["segmentation"])):
                flat.append(_words(one))
                continue
            record.boxes.append(box)
            record.labels.append(self.numbers[one["category_id"]])
            record.crowd.append(bool(one.get("iscrowd", 0)))
            if self.has_masks:
                record.shapes.append(one["segmentation"])
        total = len(content["annotations"])
        refuse_many(flat, total, f"of the {total} boxes in {file} have no area")
        return list(records.values())


def load_json(file: Path) -> Json:
    """An annotation file with at least one image, annotation and category, each with what is NEEDED of it."""
    if not file.is_file():
        raise MissingFileError(f"{file} does not exist: give a JSON file of COCO's layout")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): expected images, annotations and categories") from error
    for word, keys in NEEDED.items():
        entries = content.get(word) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"{file} has no list of {word}: expected images, annotations and categories as COCO's")
        if not entries:
            raise UserError(f"{file} has no {word}: expected at least one")
        for place, entry in enumerate(entries):
            if problem := _problem(entry, keys):
                raise UserError(f"{file}: number {place} of its {word} has {problem}")
    return content


def _problem(entry: Any, keys: dict[str, Kind]) -> str | None:
    """What an entry lacks, or has of a kind that it cannot have."""
    missing = [key for key in keys if key not in entry] if isinstance(entry, dict) else list(keys)
    if missing:
        return f"no {', '.join(missing)}: add what is missing"
    for key, (fits, expected) in keys.items():
        if not fits(entry[key]):
            return f"{key} {json.dumps(entry[key]):.60}: expected {expected}"
    return None


def xyxy(bbox: list[float]) -> Box:
    """COCO's x, y, width, height -> x1, y1, x2, y2."""
    x, y, width, height = bbox
    return x, y, x + width, y + height


def masks_of(shapes: list[Any], height: int, width: int) -> np.ndarray:
    """COCO segmentations -> bool (N, H, W)."""
    masks_NHW = np.zeros((len(shapes), height, width), bool)
    for mask_HW, shape in zip(masks_NHW, shapes, strict=True):
        mask_HW[:] = drawn(shape, height, width)
    return masks_NHW


def drawn(shape: Any, height: int, width: int) -> np.ndarray:
    """Polygons, run lengths in a list, or COCO's compressed run lengths -> (H, W) of 0 and 1."""
    tools = mask_tools()
    if isinstance(shape, list):
        shape = tools.merge(
            tools.frPyObjects([polygon for polygon in shape if len(polygon) >= TRIANGLE], height, width)
        )
    elif isinstance(shape["counts"], list):
        shape = tools.frPyObjects(shape, height, width)
    return tools.decode(shape)


def mask_tools() -> Any:
    try:
        import faster_coco_eval.core.mask as tools
    except ImportError as error:
        raise ImportError("masks of COCO's need faster-coco-eval: pip install 'longvision[dense]'") from error
    return tools


def is_drawable(shape: Any, height: int, width: int) -> bool:
    if isinstance(shape, list):
        return bool(shape) and all(_is_numbers(polygon) and len(polygon) % 2 == 0 for polygon in shape)
    if not isinstance(shape, dict) or shape.get("size") != [height, width]:
        return False
    counts = shape.get("counts")
    if isinstance(counts, list):
        return all(type(count) is int and count >= 0 for count in counts) and sum(counts) == height * width
    return isinstance(counts, str) and _is_decodable(shape)


def _is_decodable(shape: Json) -> bool:
    try:
        return bool(list(drawn(shape, *shape["size"]).shape) == shape["size"])
    except (ValueError, RuntimeError):
        return False


def is_empty(shape: Any) -> bool:
    """Whether it covers no pixel for certain."""
    if isinstance(shape, list):
        return all(len(polygon) < TRIANGLE for polygon in shape)
    return isinstance(shape["counts"], list) and not sum(shape["counts"][1::2])


def _check_ids(content: Json, file: Path) -> None:
    """Each id is one image's, and each annotation one of these images'."""
    count = Counter(image["id"] for image in content["images"])
    strange = [repr(number) for number in count if not isinstance(number, int)]
    refuse(strange, f"image ids in {file} are not whole numbers", "number the images")
    twice = [str(number) for number, times in count.items() if times > 1]
    refuse(twice, f"image ids in {file} occur more than once", "give each image its own")
    orphans = [_words(one) for one in content["annotations"] if one["image_id"] not in count]
    refuse(orphans, f"annotations in {file} belong to images that it does not list", "add the images, or remove them")


def _has_masks(annotations: list[Json], file: Path) -> bool:
    without = [_words(one) for one in annotations if not one.get("segmentation")]
    if without and len(without) < len(annotations):
        warnings.warn(
            f"{len(without)} of the {len(annotations)} annotations in {file} have no segmentation "
            f"({listing(without)}): masks are not used",
            stacklevel=3,
        )
    return not without


def _in_order(categories: Iterable[int | str]) -> list[int | str]:
    """Numbers before texts, which cannot be compared with them."""
    return sorted(categories, key=lambda category: (isinstance(category, str), category))


def _names(content: Json) -> dict[int | str, str]:
    return {category["id"]: category["name"] for category in content["categories"]}


def _check_names(content: Json, file: Path) -> None:
    """Classes are told apart by their names: in tables, charts and on images."""
    count = Counter(category["name"] for category in content["categories"])
    twice = [
        f"{category['id']} {category['name']}" for category in content["categories"] if count[category["name"]] > 1
    ]
    refuse(twice, f"categories in {file} share their names", "give each a name of its own, or merge them under one id")


def _words(annotation: Json) -> str:
    return f"annotation {annotation['id']} of image {annotation['image_id']}"


def _is_numbers(values: Any, count: int | None = None) -> bool:
    if not isinstance(values, list) or len(values) != (count or len(values)):
        return False
    return all(isinstance(value, int | float) for value in values)


def _files(root: Path, given: dict[Split, LabelsAndImages | None]) -> dict[Split, tuple[Path, Path]]:
    """The JSON file of each split and the folder of its images: as given, or as COCO names them."""
    if not root.is_dir():
        raise MissingFileError(f"{root} is not a folder: give one with annotations/ and folders of images")
    files: dict[Split, tuple[Path, Path]] = {}
    for split, pair in given.items():
        if pair is not None:
            files[split] = root / pair[0], root / pair[1]
        elif split != "test" or _annotation_files(root, split):
            files[split] = _by_name(root, split)
    for _, folder in files.values():
        if not folder.is_dir():
            raise MissingFileError(f"{folder} is not a folder: give the one that holds the images")
    return files


def _by_name(root: Path, split: Split) -> tuple[Path, Path]:
    found = _annotation_files(root, split)
    if len(found) != 1:
        raise UserError(
            f"{root / 'annotations'} has {len(found)} files instances_{split}*.json, expected one: "
            f"give data.{split}, its JSON file and the folder of its images"
        )
    name = found[0].stem.removeprefix("instances_")
    folders = [root / name, root / "images" / name]
    for folder in folders:
        if folder.is_dir():
            return found[0], folder
    raise MissingFileError(
        f"neither {folders[0]} nor {folders[1]} is a folder: "
        f"put the images of {found[0].name} there, or give data.{split}, its JSON file and the folder of its images"
    )


def _annotation_files(root: Path, split: Split) -> list[Path]:
    return sorted((root / "annotations").glob(f"instances_{split}*.json"))
