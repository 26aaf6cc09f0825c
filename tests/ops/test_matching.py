"""Matching: by hand, other systems' own, and a plain reference on random boxes."""

import math
import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.ops.anchors import pyramid_anchors
from retina_jax.ops.boxes import pairwise_iou
from retina_jax.ops.matching import Match, match_anchors, match_iou

pytestmark = pytest.mark.optimized

match = jax.jit(match_anchors, static_argnums=(4, 5, 6))
match_batch = jax.jit(
    jax.vmap(match_anchors, in_axes=(None, 0, 0, 0, None, None, None)), static_argnums=(4, 5, 6)
)
NO_CROWD = np.zeros(1, bool)
GRID = np.concatenate(pyramid_anchors((64, 96), scale=2.0)).astype(np.float32)


def plain_match(iou, foreground, background, low_quality):
    """The rule, written as a loop over anchors."""
    matched = []
    best_of_box = iou.max(axis=0) if iou.size else np.zeros(iou.shape[1])
    for row in iou:
        best = row.max() if row.size else -1.0
        claimed = low_quality and any(v == b > 0 for v, b in zip(row, best_of_box, strict=True))
        if best >= foreground or claimed:
            matched.append(int(row.argmax()))
        elif best >= background:
            matched.append(Match.IGNORE)
        else:
            matched.append(Match.BACKGROUND)
    return np.array(matched)


def test_thresholds_by_hand():
    iou = np.array([[0.7, 0.1], [0.45, 0.2], [0.3, 0.35], [0.5, 0.0], [0.4, 0.1]], np.float32)
    valid = np.ones(2, bool)
    plain = match_iou(iou, valid, low_quality=False)
    np.testing.assert_array_equal(plain, [0, Match.IGNORE, Match.BACKGROUND, 0, Match.IGNORE])
    # anchor 2 is the nearest to box 1 (0.35) and now answers for it
    claimed = match_iou(iou, valid, low_quality=True)
    np.testing.assert_array_equal(claimed, [0, Match.IGNORE, 1, 0, Match.IGNORE])


def test_a_claimed_anchor_belongs_to_its_own_best_box():
    # anchor 0 is nearest to both boxes; as in Detectron2 it answers for the nearer one
    iou = np.array([[0.45, 0.3], [0.1, 0.2]], np.float32)
    np.testing.assert_array_equal(match_iou(iou, np.ones(2, bool)), [0, Match.BACKGROUND])


def test_padding_and_boxes_that_touch_nothing_claim_no_anchor():
    iou = np.array([[0.9, 0.0, 0.9], [0.0, 0.0, 0.0]], np.float32)
    valid = np.array([True, True, False])
    np.testing.assert_array_equal(match_iou(iou, valid), [0, Match.BACKGROUND])
    np.testing.assert_array_equal(match_iou(iou, np.zeros(3, bool)), [Match.BACKGROUND] * 2)


def test_anchors_on_crowds_are_ignored_never_background_never_matched():
    anchors = np.array(
        [[0, 0, 10, 10], [3, 3, 9, 9], [50, 50, 60, 60], [5.5, 0, 15.5, 10]], np.float32
    )
    boxes = np.array([[0, 0, 10, 10], [49, 49, 59, 59]], np.float32)
    found = match(anchors, boxes, np.ones(2, bool), np.array([True, False]), 0.5, 0.4, True)
    # 1 lies inside the crowd; 3 is covered by 45 of its 100 pixels²; 2 belongs to the box
    np.testing.assert_array_equal(found, [Match.IGNORE, Match.IGNORE, 1, Match.IGNORE])
    barely = np.array([[7, 0, 17, 10]], np.float32)  # 30 of 100
    found = match(barely, boxes, np.ones(2, bool), np.array([True, False]), 0.5, 0.4, True)
    np.testing.assert_array_equal(found, [Match.BACKGROUND])


def test_foreground_on_a_crowd_stays_foreground():
    boxes = np.array([[0, 0, 40, 40], [5, 5, 15, 15]], np.float32)
    found = match(boxes[1:], boxes, np.ones(2, bool), np.array([True, False]), 0.5, 0.4, True)
    np.testing.assert_array_equal(found, [1])


@pytest.mark.parametrize("system", ["torchvision_v1", "torchvision_v2"])
def test_matches_equal_torchvision_exactly(golden, system):
    case = golden(system)
    for i in range(2):
        boxes = case[f"gt_boxes_resized_{i}"]
        none = np.zeros(len(boxes), bool)
        ours = match(case["anchors"], boxes, ~none, none, 0.5, 0.4, True)
        np.testing.assert_array_equal(ours, case[f"matched_{i}"])


def test_matches_equal_detectron2_exactly(golden):
    case = golden("detectron2")
    for i in range(2):
        boxes, labels = case[f"gt_boxes_resized_{i}"], case[f"gt_labels_{i}"]
        none = np.zeros(len(boxes), bool)
        matched = np.asarray(match(case["anchors"], boxes, ~none, none, 0.5, 0.4, True))
        ours = np.where(matched >= 0, labels[matched], np.where(matched == Match.IGNORE, -1, 3))
        np.testing.assert_array_equal(ours, case[f"anchor_label_{i}"])


@given(st.integers(0, 2**32 - 1), st.booleans(), st.integers(1, 5))
def test_equal_to_a_plain_reference(seed, low_quality, count):
    rng = np.random.default_rng(seed)
    anchors = _random_boxes(rng, 40)
    boxes = _random_boxes(rng, 5)
    valid = np.arange(5) < count
    ours = match(anchors, boxes, valid, np.zeros(5, bool), 0.5, 0.4, low_quality)
    iou = np.asarray(pairwise_iou(anchors, boxes))[:, :count]  # one shape to compile for
    np.testing.assert_array_equal(ours, plain_match(iou, 0.5, 0.4, low_quality))


@given(st.integers(0, 2**32 - 1))
def test_permuting_the_boxes_permutes_the_matches(seed):
    rng = np.random.default_rng(seed)
    anchors, boxes = _random_boxes(rng, 40), _random_boxes(rng, 5)
    order = rng.permutation(5)
    every = np.ones(5, bool)
    before = np.asarray(match(anchors, boxes, every, ~every, 0.5, 0.4, True))
    after = np.asarray(match(anchors, boxes[order], every, ~every, 0.5, 0.4, True))
    np.testing.assert_array_equal(before, np.where(after >= 0, order[after], after))


def plain_targets(anchors, boxes, valid, is_crowd, low_quality):
    """`match_anchors` in NumPy's float32, with every IoU at once."""
    one = np.float32

    def plain_area(b):
        return np.maximum(b[:, 2] - b[:, 0], 0) * np.maximum(b[:, 3] - b[:, 1], 0)

    start = np.maximum(anchors[:, None, :2], boxes[None, :, :2])
    size = np.maximum(np.minimum(anchors[:, None, 2:], boxes[None, :, 2:]) - start, 0)
    shared = size[..., 0] * size[..., 1]
    union = plain_area(anchors)[:, None] + plain_area(boxes) - shared
    iou = np.where(union > 0, shared / np.where(union > 0, union, one(1)), one(0))
    iou = np.where(valid & ~is_crowd, iou, one(-1))
    matched = plain_match(iou, one(0.5), one(0.4), low_quality)
    covered = shared / np.maximum(plain_area(anchors), one(1e-6))[:, None] >= one(0.4)
    on_crowd = (covered & valid & is_crowd).any(axis=1)
    return np.where(on_crowd & (matched == Match.BACKGROUND), Match.IGNORE, matched)


@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_a_batch_equals_a_plain_reference_bit_for_bit(seed, low_quality, whole_pixels):
    """Also ties, repeated boxes, boxes without area, crowds, gaps in the padding, no boxes."""
    rng = np.random.default_rng(seed)
    boxes = np.stack([_random_boxes(rng, 6) for _ in range(3)])
    if whole_pixels:  # many IoUs are equal
        boxes = boxes.round()
    boxes[0, 3] = boxes[0, 1]
    boxes[1, 2, 2:] = boxes[1, 2, :2]
    boxes[1, 4] = [-5, -5, 300, 300]  # every anchor lies inside: all of one shape tie
    valid = rng.random((3, 6)) < [[1.0], [0.7], [0.0]]
    is_crowd = rng.random((3, 6)) < 0.3
    ours = np.asarray(match_batch(GRID, boxes, valid, is_crowd, 0.5, 0.4, low_quality))
    for i in range(3):
        expected = plain_targets(GRID, boxes[i], valid[i], is_crowd[i], low_quality)
        np.testing.assert_array_equal(ours[i], expected)


def test_no_array_of_anchors_by_boxes_is_made():
    shapes = [(len(GRID), 4), (3, 7, 4), (3, 7), (3, 7)]
    boxes = [np.zeros(s, np.float32 if len(s) > 2 or s[1] == 4 else bool) for s in shapes]
    text = match_batch.lower(*boxes, 0.5, 0.4, True).compile().as_text()
    sizes = re.findall(r"(?:f32|pred|s32)\[([\d,]+)\]", text)
    elements = {math.prod(map(int, s.split(","))) for s in sizes}
    assert max(elements) <= 4 * len(GRID) < 7 * len(GRID)
    assert 3 * len(GRID) in elements


def _random_boxes(rng, count):
    corner = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(5, 50, (count, 2))], 1).astype(np.float32)
