"""The numbers of a report: by hand, and as the metrics have them."""

import numpy as np
import pytest

from retina_jax.evaluation import coco
from retina_jax.evaluation.report_errors import (
    BACKGROUND,
    CORRECT,
    CROWD,
    FOUND,
    MISSED,
    ImageErrors,
)
from retina_jax.evaluation.report_numbers import (
    SCORE_BINS,
    SIZE_EDGES,
    numbers_of,
    operating_point,
    score_histogram,
    size_histogram,
)


@pytest.fixture(scope="module")
def numbers(reported):
    return numbers_of(reported.truth, reported.errors, reported.evaluation)


def image(scores, kinds, object_scores, sides=None):
    """One image, whose object without a score is missed; boxes are squares."""
    object_scores = np.array(object_scores, float)
    count = len(scores)
    sides = np.ones(count + len(object_scores)) * 10 if sides is None else np.array(sides, float)
    boxes = np.stack([sides * 0, sides * 0, sides, sides], 1)
    states = np.where(object_scores > 0, FOUND, MISSED)
    return ImageErrors(
        1, boxes[count:], np.zeros(len(states), int), states, object_scores, boxes[:count],
        np.zeros(count, int), np.array(scores, float), np.array(kinds, int),
    )  # fmt: skip


def test_the_best_threshold_by_hand():
    """F1 is 2/3 from 0.9 on, 1/2 from 0.8, 4/5 from 0.7, 2/3 from 0.6."""
    one = image([0.9, 0.8], [CORRECT, BACKGROUND], [0.9])
    other = image([0.7, 0.6], [CORRECT, BACKGROUND], [0.7])
    best = operating_point([one, other])
    assert (best.threshold, best.recall) == (0.7, 1)
    assert best.precision == pytest.approx(2 / 3)
    assert best.f1 == pytest.approx(0.8)


def test_a_threshold_does_not_part_equal_scores():
    """Both score 0.5: the first alone would have F1 1, but no threshold selects it."""
    best = operating_point([image([0.5, 0.5], [CORRECT, BACKGROUND], [0.5])])
    assert (best.threshold, best.precision) == (0.5, 0.5)


def test_no_detections_and_no_images_have_no_threshold():
    for errors in ([], [image([], [], [0.0])], [image([0.5], [BACKGROUND], [])]):
        assert operating_point(errors).f1 == 0


def test_histograms_by_hand():
    errors = [image([1.0, 0.06, 0.3], [CORRECT, BACKGROUND, BACKGROUND], [1.0, 0.0],
                    sides=[4, 100, 3, 32, 33])]  # fmt: skip
    scores = score_histogram(errors)
    assert scores.shape == (2, SCORE_BINS)
    assert np.flatnonzero(scores[0]).tolist() == [19]
    assert np.flatnonzero(scores[1]).tolist() == [1, 6]
    found, missed, false = size_histogram(errors, 0.2)
    bin_of_32 = SIZE_EDGES.index(32.0) + 1  # [32, 45.3)
    assert np.flatnonzero(found).tolist() == np.flatnonzero(missed).tolist() == [bin_of_32]
    assert np.flatnonzero(false).tolist() == [0]  # of 3 pixels; that of 100 scores too low


def test_tables_are_the_metrics_in_parts(numbers, reported):
    metrics = reported.metrics
    assert np.nanmean(numbers.by_iou["all"]) == pytest.approx(metrics["AP"])
    assert numbers.by_iou["all"][5] == pytest.approx(metrics["AP75"])
    assert np.nanmean(numbers.by_iou["small"]) == pytest.approx(metrics["APs"])
    assert numbers.curves["IoU 0.50"].mean() == pytest.approx(metrics["AP50"])
    for row, curve in zip(numbers.classes, numbers.class_curves, strict=True):
        assert row.precisions["AP"] == pytest.approx(metrics["per_class"][row.name])
        assert row.precisions["AP50"] == pytest.approx(metrics["per_class_AP50"][row.name])
        assert curve.mean() == pytest.approx(row.precisions["AP50"])
    recalls = [row.precisions["AR"] for row in numbers.classes]
    assert np.mean(recalls) == pytest.approx(metrics["AR100"])
    assert sum(row.detections for row in numbers.classes) == metrics["detections"]


def test_errors_and_confusions_count_every_object(numbers, reported):
    objects = sum(int((e.object_states != CROWD).sum()) for e in reported.errors)
    assert sum(row.objects for row in numbers.classes) == objects
    assert numbers.confusion[:-1].sum() == objects
    assert numbers.confusion[-1, -1] == 0
    above = sum((e.scores >= numbers.operating.threshold).sum() for e in reported.errors)
    assert numbers.confusion[:, :-1].sum() == above
    assert numbers.scores.sum() == sum(count for _, _, count in numbers.reliability)
    assert numbers.base_ap == pytest.approx(reported.metrics["AP50"])
    assert all(row.cost >= 0 for row in numbers.errors)
    assert all(row.count > 0 for row in numbers.errors)


def test_the_reliability_by_hand(numbers, reported):
    scores = np.concatenate([e.scores for e in reported.errors])
    right = np.concatenate([e.kinds for e in reported.errors]) == CORRECT
    bins = np.minimum((scores * 10).astype(int), 9)
    gaps = [abs(scores[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean()
            for b in set(bins)]  # fmt: skip
    assert numbers.calibration_error == pytest.approx(sum(gaps))
    for b, (score, share, count) in enumerate(numbers.reliability):
        assert count == (bins == b).sum()
        if count:
            assert (score, share) == pytest.approx(
                (scores[bins == b].mean(), right[bins == b].mean())
            )


def test_classes_keep_their_order_whatever_their_ids():
    """Ids need not ascend; a class without objects has no AP."""
    truth = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 9, "name": "nine"}, {"id": 2, "name": "two"}, {"id": 5, "name": "-"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 9, "bbox": [0, 0, 20, 20], "area": 400,
             "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [50, 50, 20, 20], "area": 400,
             "iscrowd": 0},
        ],
    }  # fmt: skip
    found = [
        {"image_id": 1, "category_id": 9, "bbox": [0, 0, 20, 20], "score": 0.9},
        {"image_id": 1, "category_id": 9, "bbox": [50, 50, 20, 20], "score": 0.8},
    ]
    evaluation = coco.evaluate_boxes(truth, found)
    from retina_jax.evaluation.report_errors import errors_of

    numbers = numbers_of(truth, errors_of(truth, found, evaluation), evaluation)
    rows = {row.name: row.precisions["AP"] for row in numbers.classes}
    assert rows == {"nine": pytest.approx(1), "two": 0, "-": None}
    expected = np.zeros((4, 4), int)
    expected[0, 0] = 1
    expected[1, 3 if numbers.operating.threshold > 0.8 else 0] = 1
    assert numbers.confusion.tolist() == expected.tolist()
    assert np.isnan(numbers.class_curves[2]).all()
