"""Objects labelled as COCO does: one JSON file a split, boxes x, y, width, height, masks as polygons or run lengths."""

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from longvision.data.io.coco_masks import extent, is_drawable, is_empty, mask_tools
from longvision.data.io.colours import spread_colours
from longvision.data.leftovers import unlisted
from longvision.data.problems import counted, listing, refuse, refuse_many
from longvision.data.sources.base import Trained, look_alike, unknown_classes
from longvision.data.sources.coco_files import (
    Json,
    check_ids,
    find_images,
    in_other_capitals,
    load_json,
    plain_name,
    words_of,
)
from longvision.data.sources.coco_layout import LabelsAndImages, find_files
from longvision.data.sources.objects import (
    OVERHANG,
    Box,
    ImageRecord,
    ObjectSource,
    has_area,
    is_outside,
    overlap,
    wide_and_high,
)
from longvision.types import CocoIds, Split

ALIKE = 0.5  # intersection over union of a polygon's extent and its box


class CocoSource(ObjectSource):
    """The splits of a COCO set. Class numbers follow the ascending ids of the training file's categories.

    There are masks where every training annotation has a segmentation. Boxes up to a pixel over the edge of their
    image are cut there; objects without area are left out with a warning while they are at most 1 % of all.
    Arguments as of `CocoData`.
    """

    def __init__(
        self,
        path: str | Path,
        train: LabelsAndImages | None = None,
        val: LabelsAndImages | None = None,
        test: LabelsAndImages | None = None,
        trained: Trained | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__(path, channels)
        given: dict[Split, LabelsAndImages | None] = {"train": train, "val": val, "test": test}
        self.files = find_files(Path(path), given, self.notes, all_needed=trained is None)
        self.has_test, self.splits, self.trained = "test" in self.files, list(self.files), trained
        self._parsed: dict[Split, Json] = {}  # COCO's takes gigabytes: let go at the first reading
        self._image_ids: dict[str, int] = {}  # filled as splits are read
        self._ambiguous: set[str] = set()
        if trained is None:
            self._read_classes()
        else:
            self.classes, self.has_masks = trained.classes, trained.has_masks
        self.palette = spread_colours(len(self.classes))
        if self.has_masks:
            mask_tools()  # to say now what is missing, not in a worker process

    def _read_classes(self) -> None:
        """Of the training file."""
        training = load_json(self.files["train"][0], self.notes)
        self.names = _names(training)
        _check_names(training, self.files["train"][0])
        self.numbers = {category: number for number, category in enumerate(_in_order(self.names))}
        self.classes = [self.names[category] for category in self.numbers]
        self.ids = list(self.numbers)
        self.coco_ids = CocoIds(list(self.numbers), self._image_ids)
        self.has_masks = _has_masks(training["annotations"], self.files["train"][0])
        self._parsed["train"] = training
        self.notes += look_alike(self.classes, self.files["train"][0])

    def _without_objects(self, content: Json, file: Path) -> list[str]:
        """The line, or none, for classes that cannot be learned."""
        used = {one["category_id"] for one in content["annotations"]}
        names = [name for category, name in self.names.items() if category not in used]
        return [f"{file} has no object of {counted(len(names), 'category')} ({listing(names)})"] if names else []

    def _take_classes(self, content: Json, file: Path) -> None:
        """Those of the model, by their names, whatever ids this file has for them."""
        _check_names(content, file)
        self.names = _names(content)
        used = {self.names.get(one["category_id"]) for one in content["annotations"]} - {None}
        if unknown := [str(name) for name in used if name not in self.classes]:
            raise unknown_classes(file, unknown, self.classes, "rename these categories, or remove their annotations")
        known = {category: name for category, name in self.names.items() if name in self.classes}
        self.numbers = {category: self.classes.index(name) for category, name in known.items()}

    def labels_of(self, split: Split) -> Path:
        return self.files[split][0]

    def check(self, split: Split) -> None:
        super().check(split)
        labels, folder = self.files[split]
        if [of for _, of in self.files.values()].count(folder) == 1:  # else they are another split's
            self.notes.extend(unlisted(folder, (record.file for record in self._read(split)), labels))

    def records(self, split: Split) -> Iterable[ImageRecord]:
        file, folder = self.files[split]
        parsed = self._parsed.pop(split, None)
        self._parsed.clear()  # who reads another split first does not train
        content = parsed or load_json(file, self.notes)
        check_ids(content, file)
        if self.trained:
            self._take_classes(content, file)
        self._check_categories(content, file)
        if split == "train" and not self.trained:
            self.notes += self._without_objects(content, file)
        self._check_shapes(content, file)
        files, way = find_images(content["images"], folder)
        if way:
            self.notes.append(f"the images of {file} are found {way} ({files[0]})")
        files, others = in_other_capitals(files, folder)
        if others:
            what = f"{counted(len(others), 'file name')} of {file} ({listing(others)})"
            self.notes.append(f"{what} with other capitals than the image has, which is used")
        self._keep_ids(content["images"], folder)
        records: dict[int, ImageRecord] = {}
        for name, image in zip(files, content["images"], strict=True):
            record = ImageRecord(name, image["id"], image["height"], image["width"])
            records[image["id"]] = replace(record, shapes=[]) if self.has_masks else record
        left = [one for one in content["annotations"] if not self._add(one, records[one["image_id"]])]
        empty = [one for one in left if self.has_masks and is_empty(one["segmentation"])]
        flat = [one for one in left if not (self.has_masks and is_empty(one["segmentation"]))]
        total = len(content["annotations"])
        refuse_many(
            [f"{words_of(one)}: {one['bbox']}" for one in flat], total, f"of the {total} boxes in {file} have no area"
        )
        refuse_many(
            [words_of(one) for one in empty],
            total,
            f"of the {total} segmentations in {file} cover nothing, as a polygon of two corners",
        )
        return records.values()

    def _keep_ids(self, images: list[Json], folder: Path) -> None:
        """What prediction calls these images. A name that two splits give to different ids is not kept."""
        known = self._image_ids
        for image in images:
            key = f"{folder.name}/{plain_name(image)}"
            if known.get(key, image["id"]) != image["id"]:
                self._ambiguous.add(key)
            known[key] = image["id"]
        for key in self._ambiguous:
            known.pop(key, None)

    def _add(self, one: Json, record: ImageRecord) -> bool:
        """False for an annotation that covers nothing."""
        shape = one["segmentation"] if self.has_masks else None
        if shape is not None and is_empty(shape):
            return False
        return record.add(xyxy(one["bbox"]), self.numbers[one["category_id"]], bool(one.get("iscrowd", 0)), shape)

    def _check_categories(self, content: Json, file: Path) -> None:
        """Each category used is one that the file lists, and the one of that id in the training file."""
        listed = _names(content)
        missing = [
            f"annotation {one['id']}: category {one['category_id']!r}"
            for one in content["annotations"]
            if one["category_id"] not in listed
        ]
        kinds = {type(category) for category in listed}
        of_another = any(type(one["category_id"]) not in kinds for one in content["annotations"])
        remedy = "write category_id as the ids of the categories are" if of_another else "add them to its categories"
        refuse(missing, f"annotations in {file} have categories that it does not list", remedy)
        used = _in_order({one["category_id"] for one in content["annotations"]})
        other = [f"{category} {listed[category]}" for category in used if listed[category] != self.names.get(category)]
        train = self.files["train"][0] if other else ""
        refuse(other, f"categories of {file} are not those of {train}", "give both files the same ids and names")

    def _check_shapes(self, content: Json, file: Path) -> None:
        """Each box lies in its image, and each segmentation, where they are used, can be drawn on it."""
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        outside: list[str] = []
        undrawn: list[str] = []
        elsewhere: list[str] = []
        unlike: list[str] = []
        for one in content["annotations"]:
            size = sizes[one["image_id"]]
            if is_outside(xyxy(one["bbox"]), *size):
                outside.append(f"{words_of(one)}: {one['bbox']} in an image {wide_and_high(*size)}")
            if self.has_masks and not is_drawable(one.get("segmentation"), *size):
                undrawn.append(words_of(one))
            elif self.has_masks and _is_outlined(one):
                shape = one["segmentation"]
                same = overlap(extent(shape), xyxy(one["bbox"]))
                if same < ALIKE:
                    words = " ".join(f"{value:g}" for value in extent(shape))
                    (elsewhere if same < -OVERHANG else unlike).append(f"{words_of(one)}: {words} and {one['bbox']}")
        refuse(outside, f"boxes in {file} lie outside their images", "correct them: x, y, width, height in pixels")
        refuse(
            undrawn,
            f"annotations in {file} have no segmentation that can be drawn",
            "expected polygons, or run lengths of their image's size",
        )
        remedy = "correct them: x, y, x, y, … in pixels of the image"
        refuse(elsewhere, f"polygons in {file} lie outside their boxes", remedy)
        if unlike:
            self.notes.append(
                f"{counted(len(unlike), 'annotation')} of {file} with a polygon of another size or place than its box "
                f"({listing(unlike)})"
            )


def xyxy(bbox: list[float]) -> Box:
    """COCO's x, y, width, height -> x1, y1, x2, y2."""
    x, y, width, height = bbox
    return x, y, x + width, y + height


def _is_outlined(annotation: Json) -> bool:
    """Whether there are a polygon and a box to compare."""
    shape = annotation["segmentation"]
    return isinstance(shape, list) and not is_empty(shape) and has_area(xyxy(annotation["bbox"]))


def _has_masks(annotations: list[Json], file: Path) -> bool:
    without = [words_of(one) for one in annotations if not one.get("segmentation")]
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
    ids = Counter(category["id"] for category in content["categories"])
    twice = [str(number) for number, times in ids.items() if times > 1]
    refuse(twice, f"category ids in {file} occur more than once", "give each category its own")
    count = Counter(category["name"].strip() for category in content["categories"])
    nameless = [f"id {category['id']}" for category in content["categories"] if not category["name"].strip()]
    refuse(nameless, f"categories in {file} have no name", "give each its own")
    twice = [
        f"{category['id']} {category['name']}"
        for category in content["categories"]
        if count[category["name"].strip()] > 1
    ]
    refuse(twice, f"categories in {file} share their names", "give each a name of its own, or merge them under one id")
