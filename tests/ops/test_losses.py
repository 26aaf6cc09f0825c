"""Classification losses: formulas, relations, extremes, finite differences, memory, OHEM."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax import config
from retina_jax.ops import losses
from retina_jax.ops.losses import (
    focal_star_loss,
    quality_focal_loss,
    sigmoid_cross_entropy,
    sigmoid_focal_loss,
    softmax_focal_loss,
)

pytestmark = pytest.mark.optimized

# compiled once: called as they are, they would compile their loop anew for every example
hard_examples = jax.jit(losses.hard_examples, static_argnums=(3, 4))
ohem_selection = jax.jit(losses.ohem_selection, static_argnums=(4, 5, 6))

FUNCTIONS = {
    "cross_entropy": sigmoid_cross_entropy,
    "balanced": losses.balanced_cross_entropy,
    **{
        f"focal {gamma}": lambda x, y, g=gamma: sigmoid_focal_loss(x, y, 0.25, g)
        for gamma in (0.0, 0.5, 1.0, 2.0, 5.0)
    },
    "focal_star": focal_star_loss,
    **{
        f"softmax {gamma}": lambda x, y, g=gamma: softmax_focal_loss(x, y, 0.25, g)
        for gamma in (0.0, 0.5, 2.0)
    },
    **{
        f"qfl {beta}": lambda x, y, b=beta: quality_focal_loss(x, y, jnp.full(y.shape, 0.6), b)
        for beta in (0.0, 0.5, 2.0)
    },
    "qfl of a perfect box": lambda x, y: quality_focal_loss(x, y, jnp.ones(y.shape), 0.5),
}
LABELS = np.array([0, 1, -1, 2, -1], np.int32)


def test_every_name_of_the_config_has_its_loss():
    for name, (function, fields) in config.CLASSIFICATION_LOSSES.items():
        takes = list(inspect.signature(getattr(losses, function)).parameters)
        quality = ["quality"] if name == "qfl" else []
        assert takes == ["logits", "labels", *quality, *fields], name
        assert set(fields) <= set(config.default_config().loss)


def test_focal_loss_by_hand():
    # p = 0.9: as foreground 0.25 · 0.1² · -log 0.9, as background 0.75 · 0.9² · -log 0.1
    logit = np.log(9.0).astype(np.float32)
    loss = sigmoid_focal_loss(jnp.full((2, 2), logit), jnp.array([1, -1]))
    foreground = 0.25 * 0.1**2 * -np.log(0.9)
    background = 0.75 * 0.9**2 * -np.log(0.1)
    np.testing.assert_allclose(loss, [foreground + background, 2 * background], rtol=1e-5)


def test_focal_star_by_hand():
    # γ = 2, β = 1: a foreground logit x gives -log σ(2x + 1) / 2, a background one x → -x
    logits, sigmoid = np.array([[0.3, -0.7]], np.float32), lambda v: 1 / (1 + np.exp(-v))
    expected = -(np.log(sigmoid(1.6)) + np.log(sigmoid(2.4))) / 2
    loss = focal_star_loss(logits, jnp.array([0]), alpha=0.5)
    np.testing.assert_allclose(2 * loss, [expected], rtol=1e-5)


def test_softmax_focal_by_hand():
    logits = jnp.log(jnp.array([[0.2, 0.3, 0.5]] * 2))
    loss = softmax_focal_loss(logits, jnp.array([1, -1]), 0.25, 2.0)
    expected = [-0.25 * 0.7**2 * np.log(0.3), -0.75 * 0.5**2 * np.log(0.5)]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def plain_qfl(logits, labels, quality, beta):
    """Equation 2 of arXiv:2006.04388, in float64 as the paper writes it."""
    sigma = 1 / (1 + np.exp(-np.float64(logits)))
    y = np.where(labels[:, None] == np.arange(logits.shape[1]), quality[:, None], 0)
    entropy = -((1 - y) * np.log(1 - sigma) + y * np.log(sigma))
    return (np.abs(y - sigma) ** beta * entropy).sum(1)


RNG = np.random.default_rng(0)
MANY = RNG.uniform(-20, 20, (500, 3)).astype(np.float32), RNG.integers(-1, 3, 500)
"""Logits and labels of 500 anchors."""


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_quality_focal_equals_the_paper(beta):
    quality = RNG.uniform(0, 1, 500).astype(np.float32)
    loss = quality_focal_loss(*MANY, quality, beta)
    np.testing.assert_allclose(loss, plain_qfl(*MANY, quality, beta), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_quality_focal_of_0_and_1_is_the_focal_loss_without_alpha(beta):
    logits, labels = MANY
    for quality, same in ((jnp.ones(500), labels), (jnp.zeros(500), np.full(500, -1))):
        focal = 2 * sigmoid_focal_loss(logits, same, 0.5, beta)
        loss = quality_focal_loss(logits, labels, quality, beta)
        np.testing.assert_allclose(loss, focal, rtol=1e-5, atol=1e-9)


def test_quality_focal_without_focusing_is_the_cross_entropy_of_soft_labels():
    quality = np.full(500, 0.25, np.float32)
    mixed = 0.25 * sigmoid_cross_entropy(*MANY)
    mixed += 0.75 * sigmoid_cross_entropy(MANY[0], np.full(500, -1))
    np.testing.assert_allclose(quality_focal_loss(*MANY, quality, 0.0), mixed, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_quality_focal_is_least_where_the_score_is_the_quality(beta):
    scores = np.linspace(0.02, 0.98, 49, dtype=np.float32)  # of the columns: their qualities
    logits = np.log(scores / (1 - scores))[:, None, None] * np.ones((1, 49, 1), np.float32)
    loss = quality_focal_loss(logits, np.zeros((49, 49), int), np.tile(scores, (49, 1)), beta)
    np.testing.assert_array_equal(np.argmin(loss, axis=0), np.arange(49))
    if beta:
        np.testing.assert_allclose(np.diag(loss), 0, atol=1e-5)


def test_quality_has_no_gradient():
    def loss(quality):
        return quality_focal_loss(jnp.zeros((2, 3)), jnp.array([0, -1]), quality).sum()

    np.testing.assert_array_equal(jax.grad(loss)(jnp.array([0.3, 0.8])), 0)


@given(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), st.integers(-1, 2))
def test_gamma_0_alpha_half_is_half_the_cross_entropy(logits, label):
    logits, labels = jnp.array([logits]), jnp.array([label])
    half = 0.5 * sigmoid_cross_entropy(logits, labels)
    np.testing.assert_allclose(
        sigmoid_focal_loss(logits, labels, 0.5, 0.0), half, rtol=1e-5, atol=1e-6
    )
    target = labels if label >= 0 else jnp.array([2])
    softmax = -jax.nn.log_softmax(logits)[0, target[0]]
    np.testing.assert_allclose(
        2 * softmax_focal_loss(logits, labels, 0.5, 0.0)[0], softmax, rtol=1e-5, atol=1e-6
    )


@given(st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3), st.integers(-1, 2))
def test_focusing_only_lowers_a_loss(logits, label):
    logits, labels = jnp.array([logits]), jnp.array([label])
    by_gamma = [float(sigmoid_focal_loss(logits, labels, 0.25, g)[0]) for g in (0.0, 0.5, 2.0)]
    assert by_gamma == sorted(by_gamma, reverse=True)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits_keep_finite_values_and_gradients(name, dtype):
    values = jnp.array([-1e30, -200, -88, 0, 88, 200, 1e30], dtype)
    logits = jnp.stack(jnp.meshgrid(values, values, values), axis=-1).reshape(-1, 3)
    for label in (-1, 0, 1):
        labels = jnp.full(len(logits), label)
        loss, gradient = jax.value_and_grad(lambda x, y=labels: FUNCTIONS[name](x, y).sum())(logits)
        assert jnp.isfinite(loss)
        assert loss.dtype == jnp.float32
        assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_equals_finite_differences(name):
    logits = np.random.default_rng(0).normal(0, 2, (5, 3)).astype(np.float32)
    direction = np.random.default_rng(1).normal(0, 1, (5, 3)).astype(np.float32)

    def along(t):
        return float(FUNCTIONS[name](jnp.asarray(logits + t * direction), LABELS).sum())

    numeric = (along(1e-2) - along(-1e-2)) / 2e-2  # wide enough for float32's roundings
    gradient = jax.grad(lambda x: FUNCTIONS[name](x, LABELS).sum())(jnp.asarray(logits))
    assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_gradient_keeps_no_array_of_anchors_and_classes_beside_the_logits(name):
    logits = jnp.zeros((512, 16), jnp.bfloat16)
    labels = jnp.zeros(512, jnp.int32)
    _, backward = jax.vjp(lambda x: FUNCTIONS[name](x, labels), logits)
    kept = [x for x in jax.tree.leaves(backward) if getattr(x, "ndim", 0) == 2]
    assert sum(x.nbytes for x in kept) <= logits.nbytes


ANCHORS = np.array(
    [[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]],
    np.float32,
)
HARDNESS = np.array([3.0, 5.0, 1.0, 4.0, 2.0], np.float32)
ALL = np.ones(5, bool)


def test_hard_examples_are_the_highest_losses_of_those_that_do_not_overlap():
    # 1 and 0 overlap (IoU 9/11): 1 is harder, 0 is put aside
    chosen = hard_examples(HARDNESS, ANCHORS, ALL, 3, 0.5)
    np.testing.assert_array_equal(np.flatnonzero(chosen), [1, 3, 4])
    without_nms = hard_examples(HARDNESS, ANCHORS, ALL, 3, 1.0)
    np.testing.assert_array_equal(np.flatnonzero(without_nms), [0, 1, 3])
    allowed = np.array([True, False, True, False, False])
    for nms_iou in (0.5, 1.0):
        few = hard_examples(HARDNESS, ANCHORS, allowed, 3, nms_iou)
        np.testing.assert_array_equal(np.flatnonzero(few), [0, 2])


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.7]))
def test_hard_examples_equal_a_plain_greedy_search(seed, nms_iou):
    from retina_jax.ops.boxes import pairwise_iou

    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 50, (40, 2)).astype(np.float32)
    anchors = np.concatenate([corner, corner + rng.uniform(5, 30, (40, 2)).astype(np.float32)], 1)
    hardness = rng.random(40).astype(np.float32)
    overlap = np.asarray(pairwise_iou(anchors, anchors))
    expected: list[int] = []
    for i in np.argsort(-hardness):
        if len(expected) < 12 and all(overlap[i, j] <= nms_iou for j in expected):
            expected.append(int(i))
    chosen = hard_examples(hardness, anchors, np.ones(40, bool), 12, nms_iou)
    np.testing.assert_array_equal(np.flatnonzero(chosen), sorted(expected))


def test_ohem_one_to_three_takes_three_times_as_much_background():
    rng = np.random.default_rng(0)
    corner = np.stack([np.arange(60) * 20, np.zeros(60)], axis=1).astype(np.float32)
    anchors = np.concatenate([corner, corner + 10], axis=1)
    hardness = rng.random(60).astype(np.float32)
    foreground = np.arange(60) < 4
    ignore = np.arange(60) >= 50
    chosen = np.asarray(ohem_selection(hardness, anchors, foreground, ignore, 32, 0.5, 3.0))
    assert chosen[foreground].all()
    assert not chosen[ignore].any()
    background = np.flatnonzero(chosen & ~foreground)
    hardest = np.argsort(-np.where(~foreground & ~ignore, hardness, -1))[:12]
    np.testing.assert_array_equal(background, np.sort(hardest))
    nothing = np.zeros(60, bool)
    alone = np.asarray(ohem_selection(hardness, anchors, nothing, ignore, 32, 0.5, 3.0))
    assert alone.sum() == 3
