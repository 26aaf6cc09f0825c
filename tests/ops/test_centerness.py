"""Centerness by hand, on and beyond the sides of a box; its loss against finite differences."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.ops.centerness import centerness, centerness_loss


def anchor_at(x, y, side=6.0):
    return np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2], np.float32)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (20, 30, 1.0),  # the middle
        (15, 30, np.sqrt(5 / 15)),  # l = 5, r = 15
        (15, 50, np.sqrt(5 / 15 * 10 / 50)),  # and t = 50, b = 10
        (10, 30, 0.0),  # on a side
        (5, 30, 0.0),  # outside
        (5, 70, 0.0),  # outside along both axes: the product of two negative ratios is not 1
    ],
)
def test_by_hand(x, y, expected):
    box = np.array([10, 0, 30, 60], np.float32)
    np.testing.assert_allclose(centerness(box, anchor_at(x, y)), expected, rtol=1e-6)


def test_a_box_without_area_has_none():
    box = np.array([20, 30, 20, 30], np.float32)
    assert float(centerness(box, anchor_at(20, 30))) == 0


@given(st.integers(0, 2**32 - 1))
def test_neither_scale_nor_place_nor_the_anchors_size_matters(seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 50, (8, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 40, (8, 2))], 1).astype(np.float32)
    anchors = np.stack([anchor_at(*rng.uniform(0, 60, 2)) for _ in range(8)])
    here = np.asarray(centerness(boxes, anchors))
    assert ((here >= 0) & (here <= 1)).all()
    np.testing.assert_allclose(centerness(boxes * 4, anchors * 4), here, rtol=1e-5, atol=1e-6)
    moved = centerness(boxes + np.float32(64), anchors + np.float32(64))
    np.testing.assert_allclose(moved, here, atol=2e-3)  # √ is steep near 0
    larger = anchors + np.array([-4, -4, 4, 4], np.float32)
    np.testing.assert_allclose(centerness(boxes, larger), here, atol=2e-3)


def test_the_loss_is_least_at_its_target_and_finite_at_extreme_logits():
    logits = np.array([-200.0, -2.0, 0.0, 3.0, 200.0], np.float32)
    targets = np.array([0.0, 0.3, 1.0, 0.7, 0.25], np.float32)
    results = jax.vmap(jax.value_and_grad(centerness_loss))(logits, targets)
    loss, gradient = map(np.asarray, results)
    p = 1 / (1 + np.exp(-logits[1:4].astype(np.float64)))
    expected = -(targets[1:4] * np.log(p) + (1 - targets[1:4]) * np.log(1 - p))
    np.testing.assert_allclose(loss[1:4], expected, rtol=1e-5)
    np.testing.assert_allclose(loss[[0, 4]], [0, 150], atol=1e-5)
    np.testing.assert_allclose(gradient[1:4], p - targets[1:4], rtol=1e-5)
    at_target = np.float32(np.log(0.3 / 0.7))
    slope = jax.grad(lambda x: centerness_loss(x, np.array(0.3, np.float32)))(at_target)
    assert abs(float(slope)) < 1e-6
