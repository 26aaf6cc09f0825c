"""Targets: what padding, order and empty images may not change."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.ops.anchors import pyramid_anchors, pyramid_grids
from retina_jax.ops.boxes import decode
from retina_jax.ops.targets import assign_targets
from retina_jax.types import GroundTruth

ANCHORS = np.concatenate(pyramid_anchors((128, 128), scale=2.0))
assign = jax.jit(assign_targets)
assign_by_atss = jax.jit(
    lambda anchors, truth: assign_targets(anchors, truth, pyramid_grids((128, 128)), kind="atss")
)


def truth_of(boxes, labels, padded_to, crowd=()):
    count, padded = len(boxes), GroundTruth.empty(padded_to)
    padded.valid[:count] = True
    padded.is_crowd[list(crowd)] = True
    padded.boxes[:count] = boxes
    padded.labels[:count] = labels
    return padded


def random_truth(seed, padded_to, order=None):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 90, (5, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 38, (5, 2))], axis=1)
    labels = rng.integers(0, 3, 5)
    order = np.arange(5) if order is None else order
    return truth_of(boxes[order], labels[order], padded_to)


@given(st.integers(0, 2**32 - 1))
def test_by_atss_too_the_deltas_decode_to_the_box_and_crowds_are_ignored(seed):
    truth = random_truth(seed, 16)
    truth.is_crowd[0] = True
    targets = jax.tree.map(np.asarray, assign_by_atss(ANCHORS, truth))
    decoded = np.asarray(decode(targets.deltas, ANCHORS))[targets.foreground]
    np.testing.assert_allclose(decoded, targets.boxes[targets.foreground], atol=1e-3)
    own = (targets.boxes[targets.foreground][:, None] == truth.boxes[None, 1:5]).all(-1)
    assert own.any(axis=1).all()
    crowd = truth.boxes[0]
    inside = (ANCHORS[:, :2] >= crowd[:2]).all(1) & (ANCHORS[:, 2:] <= crowd[2:]).all(1)
    assert (targets.ignore | targets.foreground)[inside].all()
    assert not (targets.foreground & targets.ignore).any()


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@given(st.integers(0, 2**32 - 1))
def test_padding_changes_nothing(seed):
    assert_same(assign(ANCHORS, random_truth(seed, 5)), assign(ANCHORS, random_truth(seed, 16)))


@given(st.integers(0, 2**32 - 1), st.permutations(range(5)))
def test_order_of_boxes_changes_nothing(seed, order):
    shuffled = random_truth(seed, 16, np.array(order))
    assert_same(assign(ANCHORS, random_truth(seed, 16)), assign(ANCHORS, shuffled))


@given(st.integers(0, 2**32 - 1))
def test_every_box_has_an_anchor_whose_deltas_decode_to_it(seed):
    truth = random_truth(seed, 16)
    targets = jax.tree.map(np.asarray, assign(ANCHORS, truth))
    decoded = np.asarray(decode(targets.deltas, ANCHORS))[targets.foreground]
    labels = targets.labels[targets.foreground]
    nearest = np.abs(decoded[:, None] - truth.boxes[truth.valid]).max(-1).argmin(1)
    np.testing.assert_array_equal(labels, truth.labels[truth.valid][nearest])
    np.testing.assert_allclose(decoded, truth.boxes[truth.valid][nearest], atol=1e-3)
    assert not (targets.foreground & targets.ignore).any()


def test_an_image_without_boxes_is_all_background():
    targets = assign(ANCHORS, truth_of(np.zeros((0, 4)), [], 16))
    assert not targets.foreground.any()
    assert not targets.ignore.any()
    assert (targets.labels == -1).all()
    assert np.isfinite(targets.deltas).all()


def test_a_crowd_alone_is_ignored_and_never_foreground():
    targets = assign(ANCHORS, truth_of([[20, 20, 100, 100]], [1], 16, crowd=[0]))
    assert not targets.foreground.any()
    inside = (ANCHORS[:, :2] >= 20).all(1) & (ANCHORS[:, 2:] <= 100).all(1)
    assert inside.any()
    assert np.asarray(targets.ignore)[inside].all()
