"""COCO's average precision: by hand, and against COCOeval."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("torchmetrics")
pytest.importorskip("faster_coco_eval")
from longvision.metrics.average_precision import CocoAveragePrecision
from longvision.types import Detections, Target

SIDE = 48


def filled(boxes_n4: Tensor) -> Tensor:
    """Boxes' pixels (n, SIDE, SIDE), each without its lower right quarter."""
    masks = torch.zeros(len(boxes_n4), SIDE, SIDE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes_n4.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
        mask[(y1 + y2) // 2 : y2, (x1 + x2) // 2 : x2] = False
    return masks


def objects(boxes: list, labels: list[int], crowd: list[int] | None = None) -> Target:
    boxes_n4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    crowd_n = torch.tensor(crowd or [0] * len(labels), dtype=torch.bool)
    return Target(boxes_n4, torch.tensor(labels, dtype=torch.long), crowd_n, filled(boxes_n4))


def detections(boxes: list, labels: list[int], scores: list[float]) -> Detections:
    found = objects(boxes, labels)
    return Detections(found.boxes, torch.tensor(scores), found.labels, found.masks)


def measured(found: list, truth: list, classes: int = 3, masks: bool = False) -> dict[str, Tensor]:
    metric = CocoAveragePrecision(classes, masks)
    for one in zip(found, truth, strict=True):
        metric.update([one[0]], [one[1]])
    return metric.compute()


def test_by_hand():
    """Two objects, three detections: right with an IoU of 0.6, wrong, right with 1.

    Up to 0.6 precision is 1 until a recall of 0.5 and 2/3 from there: 51 of 101 recalls, and 50 x 2/3. Above, only the
    last detection is right: 1/3 until 0.5, then nothing.
    """
    truth = [objects([[0, 0, 10, 10], [20, 20, 30, 30]], [1, 1])]
    found = [detections([[0, 0, 6, 10], [40, 40, 45, 45], [20, 20, 30, 30]], [1, 1, 1], [0.9, 0.8, 0.7])]
    metrics = measured(found, truth)
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 3 / 101
    assert metrics["box_ap50"].item() == pytest.approx(low, abs=1e-6)
    assert metrics["box_ap75"].item() == pytest.approx(high, abs=1e-6)
    assert metrics["box_ap"].item() == pytest.approx((3 * low + 7 * high) / 10, abs=1e-6)
    assert metrics["class_box_ap"].isnan().tolist() == [True, False, True]


def test_a_recall_of_a_tenth_reaches_the_threshold_of_a_tenth():
    """Ten objects, one found: a precision of 1 at the recalls 0, 0.01 ... 0.1, eleven of 101."""
    truth = [objects([[4 * i, 0, 4 * i + 4, 4] for i in range(10)], [0] * 10)]
    assert measured([detections([[0, 0, 4, 4]], [0], [0.5])], truth)["box_ap"].item() == pytest.approx(11 / 101)


def test_detections_in_a_crowd_do_not_count():
    truth = [objects([[0, 0, 10, 10], [20, 20, 40, 40]], [0, 0], [0, 1])]
    found = [detections([[21, 21, 30, 30], [30, 21, 39, 29], [0, 0, 10, 10]], [0] * 3, [0.9, 0.8, 0.7])]
    metrics = measured(found, truth, masks=True)
    assert metrics["box_ap"] == 1 and metrics["mask_ap50"] == 1


@pytest.mark.parametrize("masks", [False, True])
def test_objects_never_found_have_an_ap_of_0_and_classes_without_objects_none(masks: bool):
    nothing, unfound = detections([], [], []), objects([[0, 0, 9, 9]], [1])
    metrics = measured([nothing, detections([[0, 0, 9, 9]], [2], [0.9])], [unfound, objects([], [])], masks=masks)
    assert metrics["box_ap"] == metrics["box_ap50"] == metrics["box_ap75"] == 0
    assert metrics["class_box_ap"][1] == 0 and metrics["class_box_ap"][[0, 2]].isnan().all()
    assert ("mask_ap" in metrics) == masks


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("found", [[], [detections([], [], [])], [detections([[0, 0, 9, 9]], [2], [0.9])]])
def test_without_any_object_every_metric_is_nan(found: list, masks: bool):
    metrics = measured(found, [objects([], [])] * len(found), masks=masks)
    assert len(metrics) == 8 if masks else 4
    assert all(metric.isnan().all() for metric in metrics.values())


def test_reset_forgets_and_masks_are_kept_encoded():
    metric = CocoAveragePrecision(1, masks=True)
    metric.update([detections([[0, 0, 9, 9]], [0], [0.9])], [objects([[0, 0, 9, 9]], [0])])
    assert metric.compute()["mask_ap"] == 1
    (size, counts), *_ = metric.detection_mask[0]
    assert tuple(size) == (SIDE, SIDE) and len(counts) < 100
    metric.reset()
    metric.update([detections([], [], [])], [objects([[0, 0, 9, 9]], [0])])
    assert metric.compute()["mask_ap"] == 0


def random_images(count: int, classes: int) -> tuple[list, list]:
    """Objects, some of them crowds, and detections near them, missing and invented; one image of each is empty."""
    generator = np.random.default_rng(0)
    truth, found = [], []
    for i in range(count):
        n = 0 if i == 1 else int(generator.integers(1, 7))
        corner = generator.integers(0, SIDE - 24, (n, 2))
        boxes = np.concatenate([corner, corner + generator.integers(4, 24, (n, 2))], 1).astype(float)
        labels = generator.integers(0, classes - 1, n)  # the last class has no object
        truth.append(objects(boxes.tolist(), labels.tolist(), (generator.random(n) < 0.2).astype(int).tolist()))
        near = np.concatenate([boxes, boxes]) + generator.integers(-2, 3, (2 * n, 4))
        near = np.concatenate([near, [[1, 1, 20, 20]] * 2]).clip(0, SIDE)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 2)
        near = near[: 0 if i == 2 else len(near)]
        names = np.concatenate([labels, labels, [0, classes - 1]])[: len(near)]
        wrong = generator.random(len(near)) < 0.2
        names = np.where(wrong, generator.integers(0, classes, len(near)), names)
        found.append(detections(near.tolist(), names.tolist(), generator.random(len(near)).tolist()))
    return found, truth


def by_cocoeval(found: list, truth: list, classes: int, kind: str) -> tuple[list[float], list[float]]:
    """-> AP, AP50, AP75, and each class's AP."""
    coco, cocoeval, mask = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval", "mask"))
    annotations, results = [], []
    for image, (one, other) in enumerate(zip(truth, found, strict=True)):
        for rows, into in ((one, annotations), (other, results)):
            for k, (x1, y1, x2, y2) in enumerate(rows.boxes.tolist()):
                rle = mask.encode(np.asfortranarray(rows.masks[k].numpy().astype(np.uint8)))
                area = float(mask.area(rle)) if kind == "segm" else (x2 - x1) * (y2 - y1)
                row = {"image_id": image, "category_id": int(rows.labels[k]), "segmentation": rle, "area": area}
                row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "id": len(into) + 1}
                row |= {"iscrowd": int(rows.iscrowd[k])} if into is annotations else {"score": float(rows.scores[k])}
                into.append(row)
    data = coco.COCO()
    images = [{"id": i, "height": SIDE, "width": SIDE} for i in range(len(truth))]
    data.dataset = {"images": images, "annotations": annotations, "categories": [{"id": k} for k in range(classes)]}
    with contextlib.redirect_stdout(io.StringIO()):
        data.createIndex()
        evaluation = cocoeval.COCOeval(data, data.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision_TRK = evaluation.eval["precision"][:, :, :, 0, -1]
    by_class = [p[p > -1].mean() if (p > -1).any() else math.nan for p in np.moveaxis(precision_TRK, 2, 0)]
    return evaluation.stats[:3].tolist(), by_class


@pytest.mark.parametrize("kind, words", [("box", "bbox"), ("mask", "segm")])
def test_agrees_with_cocoeval(kind: str, words: str):
    found, truth = random_images(12, classes=4)
    metrics = measured(found, truth, 4, masks=True)
    top, by_class = by_cocoeval(found, truth, 4, words)
    ours = [metrics[f"{kind}_{name}"].item() for name in ("ap", "ap50", "ap75")]
    assert 0.05 < top[0] < 0.95
    assert ours == pytest.approx(top, abs=1e-6)
    assert metrics[f"class_{kind}_ap"].tolist() == pytest.approx(by_class, abs=1e-6, nan_ok=True)
    assert math.isnan(by_class[3])
