"""NMS on the device: equal to the host's on random, tied and awkward boxes."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.evaluation.nms import Rule, clip_to_image, suppress, without_padding
from retina_jax.ops.nms import cut_to_image, keep_best
from retina_jax.types import Candidates, Detections

K, IMAGES = 60, 3
CASES = [(0.0, 80), (0.3, 80), (0.5, 80), (0.7, 80), (1.0, 80), (0.5, 1), (0.5, 7)]
"""IoU threshold and number of detections; each is a program to compile."""


@functools.cache
def on_device(threshold, most):
    return jax.jit(
        jax.vmap(functools.partial(keep_best, iou_threshold=threshold, max_detections=most))
    )


def equal_to_the_host(candidates, threshold, most):
    """Compares a batch of images; returns the number of boxes kept in each."""
    kept = jax.tree.map(np.asarray, on_device(threshold, most)(candidates))
    assert kept.boxes.shape == (len(candidates.scores), most, 4)
    counts = []
    for i in range(len(candidates.scores)):
        one, ours = (jax.tree.map(lambda x, i=i: x[i], x) for x in (candidates, kept))
        expected = suppress(one, Rule(threshold, most))
        count = len(expected.scores)
        jax.tree.map(np.testing.assert_array_equal, without_padding(ours), expected)
        for values in (ours.boxes, ours.scores, ours.labels):
            assert not values[count:].any()
        counts.append(count)
    return counts


def scene(rng, corners, sides, scores, classes):
    boxes = np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)
    labels = rng.integers(0, classes, boxes.shape[:2]).astype(np.int32)
    return Candidates(boxes=boxes, scores=scores.astype(np.float32), labels=labels)


@given(st.integers(0, 2**32 - 1), st.sampled_from(CASES))
def test_equal_on_boxes_and_scores_that_tie(seed, case):
    rng = np.random.default_rng(seed)
    corners = rng.integers(-5, 20, (IMAGES, K, 2))
    sides = rng.integers(0, 15, (IMAGES, K, 2))  # some without area
    scores = rng.integers(0, 8, (IMAGES, K)) / 8  # some are padding
    equal_to_the_host(scene(rng, corners, sides, scores, 3), *case)


@given(st.integers(0, 2**32 - 1), st.sampled_from(CASES), st.sampled_from([3.0, 300.0]))
def test_equal_on_random_boxes(seed, case, spread):
    rng = np.random.default_rng(seed)
    corners = rng.normal(500, spread, (IMAGES, K, 2))
    sides = rng.lognormal(3, 1, (IMAGES, K, 2))
    scores = rng.uniform(0, 1, (IMAGES, K))
    equal_to_the_host(scene(rng, corners, sides, scores, 2), *case)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.7]))
def test_equal_where_float32_would_not_tell(seed, threshold):
    """IoUs within some millionths of a millionth of the threshold, on either side."""
    rng = np.random.default_rng(seed)
    first = np.concatenate([rng.uniform(0, 900, (IMAGES, K // 2, 2)), np.zeros((1, 1, 1))
                            + rng.uniform(20, 300, (IMAGES, K // 2, 2))], axis=-1)  # fmt: skip
    corners, sides = first[..., :2].astype(np.float32), first[..., 2:]
    low = (corners + sides).astype(np.float32)
    inner = low.copy()  # a box inside, of the threshold's share of its area
    inner[..., 0] = corners[..., 0] + (low - corners)[..., 0].astype(float) * threshold
    steps = rng.integers(-1, 2, inner.shape[:2])
    inner[..., 0] = np.where(steps, np.nextafter(inner[..., 0], steps * np.float32(1e9)),
                             inner[..., 0])  # fmt: skip
    boxes = np.concatenate(
        [np.concatenate([corners, low], -1), np.concatenate([corners, inner], -1)], axis=1
    )
    scores = np.tile(np.linspace(0.9, 0.1, K, dtype=np.float32), (IMAGES, 1))
    labels = np.tile(np.arange(K // 2, dtype=np.int32), (IMAGES, 2))
    counts = equal_to_the_host(Candidates(boxes, scores, labels), threshold, 80)
    assert any(K // 2 < count < K for count in counts), "both sides of the threshold occur"


def test_an_iou_equal_to_the_threshold_keeps_both_boxes():
    """Also where the product 0.7 · union, in float64, falls below 7/10 of it."""
    scales = range(1, 40)
    for tenths in (3, 7):
        boxes = [[[0, 0, 10, scale], [0, 0, tenths, scale]] for scale in scales]
        pairs = Candidates(
            boxes=np.array(boxes, np.float32),
            scores=np.tile(np.array([0.9, 0.8], np.float32), (len(scales), 1)),
            labels=np.zeros((len(scales), 2), np.int32),
        )
        assert set(equal_to_the_host(pairs, tenths / 10, 2)) == {2}
    assert any(0.7 * (10 * scale) < 7 * scale for scale in scales), "float64 alone would drop one"


def test_no_candidates_and_fewer_than_detections():
    nothing = Candidates(
        boxes=np.ones((2, 5, 4), np.float32),
        scores=np.zeros((2, 5), np.float32),
        labels=np.ones((2, 5), np.int32),
    )
    assert equal_to_the_host(nothing, 0.5, 9) == [0, 0]
    scores = nothing.scores.copy()
    scores[1, 2] = 0.3
    assert equal_to_the_host(nothing.replace(scores=scores), 0.5, 9) == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_cutting_after_nms_is_the_hosts(seed):
    rng = np.random.default_rng(seed)
    corners, sides = rng.uniform(-60, 110, (20, 2)), rng.uniform(0, 60, (20, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    scores = np.sort(rng.uniform(0.1, 1, 20).astype(np.float32))[::-1].copy()
    scores[15:] = 0
    kept = Candidates(boxes=boxes, scores=scores, labels=np.arange(20, dtype=np.int32))
    cut = cut_to_image(kept, np.int32(64), np.int32(100))
    expected = clip_to_image(Detections(boxes[:15], scores[:15], kept.labels[:15]), 64, 100)
    assert 0 < len(expected.scores) < 15
    ours = without_padding(jax.tree.map(np.asarray, cut))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
