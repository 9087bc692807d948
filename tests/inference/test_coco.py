"""Objects are stored so that other programs read them back."""

import json

import numpy as np
import pytest

from longvision.inference.coco import CocoResults
from longvision.types import Detections, Target

CLASSES = ["road", "sky", "tree"]


def objects(*boxes, labels=None, scores=None, masks=None):
    """Detections where there are scores, else a target."""
    boxes_N4 = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    labels_N = np.array(labels if labels is not None else [0] * len(boxes), dtype=np.int64)
    if scores is None:
        return Target(boxes_N4, labels_N, np.zeros(len(boxes), bool), masks)
    return Detections(boxes_N4, np.array(scores, dtype=np.float32), labels_N, masks)


def results(*images):
    made = CocoResults(CLASSES)
    for image in images:
        made.add(*image)
    return made.as_dict()


def coco_of(result, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    (tmp_path / "found.json").write_text(json.dumps(result))
    return coco.COCO(str(tmp_path / "found.json"))


def test_results_are_coco(tmp_path):
    pytest.importorskip("faster_coco_eval")
    masks = np.random.default_rng(0).random((2, 30, 40)) > 0.5
    first = objects([1, 2, 11, 22.5], [0, 0, 5, 5], labels=[2, 0], scores=[0.9, 0.25], masks=masks)
    empty = objects(scores=[], masks=np.zeros((0, 7, 9), bool))
    result = results(("a.png", (30, 40), first), ("b/c.png", (7, 9), empty))
    coco = coco_of(result, tmp_path)
    assert coco.imgs[1] == {"id": 1, "file_name": "a.png", "width": 40, "height": 30}
    assert coco.imgs[2] == {"id": 2, "file_name": "b/c.png", "width": 9, "height": 7}
    assert {k: c["name"] for k, c in coco.cats.items()} == {1: "road", 2: "sky", 3: "tree"}
    assert coco.getAnnIds(2) == []
    stored = coco.loadAnns(coco.getAnnIds(1))
    assert [(a["id"], a["image_id"], a["category_id"], a["iscrowd"]) for a in stored] == [(1, 1, 3, 0), (2, 1, 1, 0)]
    assert stored[0]["bbox"] == [1, 2, 10, 20.5] and stored[1]["score"] == 0.25
    for annotation, mask in zip(stored, masks, strict=True):
        assert isinstance(annotation["segmentation"]["counts"], str)
        assert (coco.annToMask(annotation) == mask).all() and annotation["area"] == mask.sum()


def test_results_without_masks_have_the_area_of_their_boxes(tmp_path):
    found = objects([1, 2, 11, 22.5], scores=[0.1])
    coco = coco_of(results(("a.png", (30, 40), found)), tmp_path)
    assert coco.anns[1]["area"] == 205 and "segmentation" not in coco.anns[1]


def test_results_number_objects_across_images():
    found = objects([0, 0, 1, 1], [0, 0, 2, 2], scores=[0.3, 0.8])
    result = results(("a", (9, 9), found), ("b", (9, 9), found))
    assert [(a["id"], a["image_id"], a["score"]) for a in result["annotations"]] == [
        (1, 1, pytest.approx(0.8)),
        (2, 1, pytest.approx(0.3)),
        (3, 2, pytest.approx(0.8)),
        (4, 2, pytest.approx(0.3)),
    ]
