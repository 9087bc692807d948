"""Metrics of a segmentation, against a matrix worked by hand."""

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchmetrics")
from longvision.metrics.segmentation import SegmentationMetrics, segmentation_metrics

NAN = float("nan")
TRUTH = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 255], [2, 2, 255, 255]])
FOUND = torch.tensor([[0, 0, 0, 1], [1, 1, 2, 0], [0, 2, 1, 2]])
# of 9 pixels that count, rows true, columns predicted
COUNTS = [[3, 1, 0], [0, 2, 1], [1, 0, 1]]
BY_HAND = {
    "miou": (3 / 5 + 2 / 4 + 1 / 3) / 3,
    "pixel_accuracy": 6 / 9,
    "mean_accuracy": (3 / 4 + 2 / 3 + 1 / 2) / 3,
    "class_iou": [3 / 5, 2 / 4, 1 / 3],
    "class_f1": [6 / 8, 4 / 6, 2 / 4],
    "class_accuracy": [3 / 4, 2 / 3, 1 / 2],
}


def measured(pred, truth, classes):
    metrics = SegmentationMetrics(classes)
    metrics.update(torch.as_tensor(pred), torch.as_tensor(truth))
    return metrics.compute()


def assert_metrics(got, expected):
    assert set(got) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], torch.tensor(value), equal_nan=True, msg=lambda text, name=name: name)


def test_metrics_match_those_worked_by_hand():
    metrics = SegmentationMetrics(3)
    metrics.update(FOUND, TRUTH)
    assert metrics.counts_KK.tolist() == COUNTS
    assert_metrics(metrics.compute(), BY_HAND)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_masks_of_any_integers_in_batches_or_alone(dtype):
    metrics = SegmentationMetrics(3)
    metrics.update(FOUND[:1].to(dtype), TRUTH[:1].to(dtype))
    metrics.update(FOUND[None, 1:].to(dtype), TRUTH[None, 1:].to(dtype))
    assert metrics.counts_KK.tolist() == COUNTS


def test_many_classes_in_eight_bits_do_not_overflow():
    pred, truth = torch.tensor([[149, 140]], dtype=torch.uint8), torch.tensor([[149, 3]], dtype=torch.uint8)
    assert measured(pred, truth, 150)["class_iou"][149] == 1


def test_a_class_in_neither_is_left_out_of_the_means():
    got = measured([[0, 0, 1, 1]], [[0, 0, 0, 1]], classes=4)
    assert_metrics(
        got,
        {
            "miou": (2 / 3 + 1 / 2) / 2,
            "pixel_accuracy": 3 / 4,
            "mean_accuracy": (2 / 3 + 1) / 2,
            "class_iou": [2 / 3, 1 / 2, NAN, NAN],
            "class_f1": [4 / 5, 2 / 3, NAN, NAN],
            "class_accuracy": [2 / 3, 1.0, NAN, NAN],
        },
    )


def test_a_class_that_is_only_predicted_counts_as_missed():
    got = measured([[0, 0, 0, 2]], [[0, 0, 0, 0]], classes=3)
    assert got["class_iou"].nan_to_num(9).tolist() == [0.75, 9, 0]
    assert got["miou"] == pytest.approx(0.375)
    assert got["mean_accuracy"] == pytest.approx(0.75)  # of the one class that is there


def test_two_classes_have_the_f1_of_the_second():
    got = measured([[1, 1, 0, 0, 0, 0]], [[1, 0, 1, 1, 0, 0]], classes=2)
    assert got["f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 2))
    assert "f1" not in measured([[1]], [[1]], classes=3)


def test_a_image_that_is_all_ignored_changes_nothing():
    metrics = SegmentationMetrics(3)
    metrics.update(FOUND, TRUTH)
    metrics.update(FOUND, torch.full_like(TRUTH, 255))
    assert metrics.counts_KK.tolist() == COUNTS


def test_nothing_at_all_is_nan():
    got = segmentation_metrics(torch.zeros(3, 3, dtype=torch.long))
    assert all(value.isnan().all() for value in got.values())


def test_what_is_predicted_at_ignored_pixels_does_not_matter():
    got = measured([[0, 255]], [[0, 255]], classes=2)
    assert got["pixel_accuracy"] == 1


@pytest.mark.parametrize(
    "pred, truth, words",
    [
        ([[0, 3]], [[0, 1]], "prediction has class numbers 0 to 3"),
        ([[0, 1]], [[1, 7]], "target has class numbers 1 to 7"),
    ],
)
def test_a_number_that_is_no_class_is_refused(pred, truth, words):
    with pytest.raises(ValueError, match=words):
        measured(pred, truth, classes=3)
    with pytest.raises(ValueError, match="-1"):
        measured([[0, 0]], [[-1, 0]], classes=3)


def test_masks_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        measured([[0, 1]], [[0, 1], [0, 1]], classes=2)


def test_counts_of_several_devices_are_summed():
    metrics = SegmentationMetrics(3)
    metrics.distributed_available_fn = lambda: True
    metrics.dist_sync_fn = lambda state, group: [state, state.T]  # a second device saw truth and prediction swapped
    metrics.update(FOUND, TRUTH)
    both = torch.tensor(COUNTS) + torch.tensor(COUNTS).T
    assert_metrics(metrics.compute(), {name: value.tolist() for name, value in segmentation_metrics(both).items()})
    assert metrics.counts_KK.tolist() == COUNTS


def test_reset_forgets():
    metrics = SegmentationMetrics(3)
    metrics.update(FOUND, TRUTH)
    metrics.compute()
    metrics.reset()
    metrics.update(torch.ones(1, 1).long(), torch.ones(1, 1).long())
    assert metrics.compute()["miou"] == 1


def test_counts_beyond_float32_stay_exact():
    metrics = SegmentationMetrics(2)
    metrics.counts_KK += 2**24
    metrics.update(torch.tensor([[1]]), torch.tensor([[1]]))
    assert metrics.counts_KK[1, 1].item() == 2**24 + 1
