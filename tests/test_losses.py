"""Losses: the formula, relations, extremes, finite differences, and other systems' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.losses import sigmoid_focal_loss, smooth_l1
from retina_jax.targets import assign_targets
from retina_jax.types import GroundTruth


def test_focal_loss_by_hand():
    # p = 0.9 on a foreground: 0.25 · 0.1² · -log 0.9; on a background: 0.75 · 0.9² · -log 0.1
    logit = np.log(9.0).astype(np.float32)
    loss = sigmoid_focal_loss(jnp.array([logit, logit]), jnp.array([1.0, 0.0]))
    expected = [0.25 * 0.1**2 * -np.log(0.9), 0.75 * 0.9**2 * -np.log(0.1)]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=8), st.integers(0, 1))
def test_gamma_0_alpha_half_is_half_the_cross_entropy(logits, target):
    logits = jnp.array(logits)
    targets = jnp.full(logits.shape, float(target))
    cross_entropy = jnp.logaddexp(0.0, logits) - targets * logits
    np.testing.assert_allclose(
        sigmoid_focal_loss(logits, targets, alpha=0.5, gamma=0.0),
        0.5 * cross_entropy,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits_keep_finite_values_and_gradients(gamma, dtype):
    logits = jnp.array([-1e4, -200, -88, 0, 88, 200, 1e4], dtype)
    for target in (0.0, 1.0):
        loss, gradient = jax.value_and_grad(
            lambda x, t=target: sigmoid_focal_loss(x, jnp.full(x.shape, t), gamma=gamma).sum()
        )(logits)
        assert jnp.isfinite(loss)
        assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradient_equals_finite_differences(gamma):
    logits, step = np.linspace(-4, 4, 9), 1e-5
    for target in (0.0, 1.0):
        numeric = _focal_float64(logits + step, target, gamma)
        numeric = (numeric - _focal_float64(logits - step, target, gamma)) / (2 * step)
        exact = jax.grad(
            lambda x, t=target: sigmoid_focal_loss(x, jnp.full(x.shape, t), gamma=gamma).sum()
        )(jnp.array(logits, jnp.float32))
        np.testing.assert_allclose(exact, numeric, rtol=2e-4, atol=1e-6)


def _focal_float64(logits, target, gamma):
    p = 1 / (1 + np.exp(-logits))
    p_t = p if target else 1 - p
    return -(0.25 if target else 0.75) * (1 - p_t) ** gamma * np.log(p_t)


def test_smooth_l1_meets_at_beta_and_is_l1_at_0():
    x = jnp.array([-2.0, -0.5, -0.1, 0.0, 0.1, 0.5, 2.0])
    zero = jnp.zeros_like(x)
    np.testing.assert_array_equal(smooth_l1(x, zero, 0.0), jnp.abs(x))
    np.testing.assert_allclose(
        smooth_l1(x, zero, 0.5), [1.75, 0.25, 0.01, 0, 0.01, 0.25, 1.75], rtol=1e-6
    )
    slope = jax.grad(lambda v: smooth_l1(v, jnp.zeros(()), 0.5))
    np.testing.assert_allclose(slope(jnp.array(0.4999)), slope(jnp.array(0.5001)), atol=1e-3)


@pytest.fixture(scope="module")
def other_systems(golden):
    """Per-image sums of both losses and the count of foreground anchors, on others' logits."""

    def sums(system):
        case = golden(system)
        found = []
        for i in range(2):
            boxes = case[f"gt_boxes_resized_{i}"]
            truth = GroundTruth(
                boxes=boxes,
                labels=case[f"gt_labels_{i}"].astype(np.int32),
                valid=np.ones(len(boxes), bool),
                is_crowd=np.zeros(len(boxes), bool),
            )
            targets = assign_targets(case["anchors"], truth)
            logits = case["cls_logits"][i]
            focal = sigmoid_focal_loss(logits, jax.nn.one_hot(targets.labels, logits.shape[-1]))
            focal = jnp.where(targets.ignore[:, None], 0, focal).sum()
            box = smooth_l1(case["box_regression"][i], targets.deltas, 0.0)
            box = jnp.where(targets.foreground[:, None], box, 0).sum()
            found.append((float(focal), float(box), int(targets.foreground.sum())))
        return case, found

    return sums


def test_losses_equal_detectron2(other_systems):
    case, images = other_systems("detectron2")
    normalizer = float(case["loss_normalizer"])
    np.testing.assert_allclose(
        sum(i[0] for i in images) / normalizer, case["loss_classification"], rtol=1e-5
    )
    np.testing.assert_allclose(sum(i[1] for i in images) / normalizer, case["loss_box"], rtol=1e-5)


@pytest.mark.parametrize("system", ["torchvision_v1", "torchvision_v2"])
def test_losses_equal_torchvision(other_systems, system):
    case, images = other_systems(system)
    focal = np.mean([focal / max(1, count) for focal, _, count in images])
    np.testing.assert_allclose(focal, case["loss_classification"], rtol=1e-5)
    if system == "torchvision_v1":  # v2 has GIoU
        box = np.mean([box / max(1, count) for _, box, count in images])
        np.testing.assert_allclose(box, case["loss_box"], rtol=1e-5)
