"""NMS: by hand, and equal to a plain O(n²) reference on random boxes with ties."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.evaluation.nms import Rule, class_wise_nms, soft_nms, suppress
from retina_jax.types import Candidates


def plain_nms(boxes, scores, labels, threshold, most):
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        for j in kept:
            top_left = np.maximum(boxes[i, :2], boxes[j, :2])
            size = np.maximum(np.minimum(boxes[i, 2:], boxes[j, 2:]) - top_left, 0)
            shared = size.prod()
            areas = [np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, j)]
            if labels[i] == labels[j] and shared > threshold * (sum(areas) - shared):
                break
        else:
            kept.append(i)
    return np.array(kept[:most], np.int64)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.7]), st.integers(1, 60))
def test_equal_to_a_plain_reference(seed, threshold, most):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 20, (50, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 15, (50, 2))], axis=1).astype(float)
    scores = rng.integers(1, 8, 50) / 8  # many ties
    labels = rng.integers(0, 3, 50)
    ours = class_wise_nms(boxes, scores, labels, threshold, most)
    np.testing.assert_array_equal(ours, plain_nms(boxes, scores, labels, threshold, most))


def test_by_hand():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [0, 0, 10, 5]], float)
    scores = np.array([0.6, 0.9, 0.8, 0.7])
    labels = np.array([0, 0, 1, 0])
    # 1 wins and takes 0 (IoU 0.9) and 3 (5/9); 2 is of another class
    np.testing.assert_array_equal(class_wise_nms(boxes, scores, labels, 0.5, 10), [1, 2])
    np.testing.assert_array_equal(class_wise_nms(boxes, scores, labels, 0.6, 10), [1, 2, 3])
    np.testing.assert_array_equal(class_wise_nms(boxes, scores, labels, 0.5, 1), [1])


def test_iou_of_exactly_the_threshold_stays():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], float)
    kept = class_wise_nms(boxes, np.array([0.9, 0.8]), np.zeros(2, int), 0.5, 10)
    np.testing.assert_array_equal(kept, [0, 1])


def test_empty_places_are_no_detections():
    candidates = Candidates(
        boxes=np.array([[0, 0, 4, 4], [5, 5, 9, 9], [9, 9, 9, 12]], np.float32),
        scores=np.array([0.0, 0.9, 0.3], np.float32),
        labels=np.array([0, 0, 2], np.int32),
    )
    found = suppress(candidates, Rule(0.5, 100))
    # a box that clipping left without area stays, as in torchvision
    np.testing.assert_array_equal(found.boxes, [[5, 5, 9, 9], [9, 9, 9, 12]])
    assert found.labels.tolist() == [0, 2]
    nothing = suppress(candidates.replace(scores=np.zeros(3, np.float32)), Rule(0.5, 100))
    assert nothing.boxes.shape == (0, 4)


def plain_soft_nms(boxes, scores, labels, decay, iou_threshold, sigma, threshold, most):
    """Figure 2 of arXiv:1704.04503, one class after the other, without any arrays of its own."""
    left, kept = dict(enumerate(scores)), []
    while left and len(kept) < most:
        best = max(left, key=lambda i: (left[i], -i))
        score = left.pop(best)
        if score <= threshold:
            break
        kept.append((best, score))
        for i in left:
            if labels[i] != labels[best]:
                continue
            low, high = (f(boxes[i][c], boxes[best][c]) for f, c in ((np.maximum, slice(2)),
                         (np.minimum, slice(2, 4))))  # fmt: skip
            shared = np.prod(np.maximum(high - low, 0))
            areas = [np.prod(boxes[k][2:] - boxes[k][:2]) for k in (i, best)]
            iou = shared / (sum(areas) - shared)
            if decay == "gaussian":
                left[i] *= np.exp(-(iou**2) / sigma)
            elif iou > iou_threshold:
                left[i] *= 1 - iou
    return kept


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["gaussian", "linear"]),
    st.sampled_from([0.3, 0.5]),
    st.sampled_from([0.3, 0.5, 1.0]),
    st.integers(1, 60),
)
def test_soft_nms_is_a_plain_reference(seed, decay, threshold, sigma, most):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 20, (50, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 15, (50, 2))], axis=1).astype(float)
    scores = rng.integers(1, 8, 50) / 8  # many ties
    labels = rng.integers(0, 3, 50)
    rule = Rule(threshold, most, soft=decay, sigma=sigma, threshold=0.05)
    rows, lowered = soft_nms(boxes, scores, labels, rule)
    expected = plain_soft_nms(boxes, scores, labels, decay, threshold, sigma, 0.05, most)
    assert (np.diff(lowered) <= 0).all()
    np.testing.assert_allclose(lowered, [score for _, score in expected], rtol=1e-12)
    np.testing.assert_array_equal(rows, [row for row, _ in expected])


def test_soft_nms_by_hand():
    candidates = Candidates(
        boxes=np.array([[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 6]], np.float32),
        scores=np.array([0.9, 0.8, 0.7], np.float32),
        labels=np.array([0, 0, 1], np.int32),
    )
    linear = suppress(candidates, Rule(0.5, 10, soft="linear"))
    # IoU 0.6: 0.8 · (1 - 0.6) falls below the other class
    np.testing.assert_allclose(linear.scores, [0.9, 0.7, 0.32], rtol=1e-6)
    assert linear.labels.tolist() == [0, 1, 0]
    assert linear.scores.dtype == np.float32
    gaussian = suppress(candidates, Rule(0.5, 10, soft="gaussian", sigma=0.5))
    np.testing.assert_allclose(gaussian.scores[2], 0.8 * np.exp(-0.36 / 0.5), rtol=1e-6)
    # 0.32 is dropped, and so is what falls below the threshold later
    few = suppress(candidates, Rule(0.5, 10, soft="linear", threshold=0.4))
    np.testing.assert_allclose(few.scores, [0.9, 0.7], rtol=1e-6)


def test_class_agnostic_boxes_of_all_classes_compete():
    candidates = Candidates(
        boxes=np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 29, 29]], np.float32),
        scores=np.array([0.7, 0.9, 0.3], np.float32),
        labels=np.array([0, 1, 0], np.int32),
    )
    assert suppress(candidates, Rule(0.5, 10)).labels.tolist() == [1, 0, 0]
    one = suppress(candidates, Rule(0.5, 10, agnostic=True))
    assert one.labels.tolist() == [1, 0]
    soft = suppress(candidates, Rule(0.5, 10, soft="linear", agnostic=True))
    np.testing.assert_allclose(soft.scores, [0.9, 0.3, 0.07], rtol=1e-5)


def test_the_rule_is_that_of_the_config():
    from retina_jax.config import default_config

    options = default_config().eval
    assert Rule.of(options) == Rule(0.5, 100, threshold=0.05)
    options.nms, options.class_agnostic, options.soft_sigma = "soft", True, 0.3
    assert Rule.of(options) == Rule(0.5, 100, "gaussian", 0.3, True, 0.05)
