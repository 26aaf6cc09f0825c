"""NMS: by hand, and equal to a plain O(n²) reference on random boxes with ties."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.evaluation.nms import class_wise_nms, suppress
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
    found = suppress(candidates, 0.5, 100)
    # a box that clipping left without area stays, as in torchvision
    np.testing.assert_array_equal(found.boxes, [[5, 5, 9, 9], [9, 9, 9, 12]])
    assert found.labels.tolist() == [0, 2]
    nothing = suppress(candidates.replace(scores=np.zeros(3, np.float32)), 0.5, 100)
    assert nothing.boxes.shape == (0, 4)
