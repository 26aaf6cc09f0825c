"""Distances as distributions: by hand, a plain reference, limits, extremes, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retina_jax.ops.distribution import (
    MARGIN,
    decode_distances,
    distribution_focal_loss,
    encode_distances,
    integral,
)

BINS = 16


def plain_loss(logits, y):
    """Equation 6 for one distribution, in float64 as the paper writes it."""
    s = np.exp(logits - logits.max())
    s /= s.sum()
    y = min(max(y, 0), len(logits) - 1 - 0.1)
    i = int(np.floor(y))
    return -((i + 1 - y) * np.log(s[i]) + (y - i) * np.log(s[i + 1]))


def test_distances_by_hand():
    # centre (12, 20): the box begins 8 and 4 px before it and ends 24 and 2 px after; a stride of
    # 8 px across, 4 px down
    anchor, box = np.float32([[4, 16, 20, 24]]), np.float32([[4, 16, 36, 22]])
    strides = np.float32([[8, 4]])
    np.testing.assert_array_equal(encode_distances(box, anchor, strides), [[1, 1, 3, 0.5]])
    np.testing.assert_array_equal(decode_distances(np.float32([[1, 1, 3, 0.5]]), anchor, strides),
                                  box)  # fmt: skip


def test_distances_decode_to_their_box():
    rng = np.random.default_rng(0)
    corner = rng.uniform(-50, 400, (2, 200, 2))
    boxes, anchors = np.concatenate(
        [corner, corner + rng.uniform(1, 200, (2, 200, 2))], axis=-1
    ).astype(np.float32)  # centres beyond the sides of their boxes, too
    strides = np.float32(2.0 ** rng.integers(3, 8, (200, 2)))
    distances = encode_distances(boxes, anchors, strides)
    np.testing.assert_allclose(decode_distances(distances, anchors, strides), boxes, atol=1e-3)


@pytest.mark.parametrize("value", [0, 1, 7, BINS])
def test_a_distribution_of_one_value_is_that_value(value):
    logits = np.full((4, BINS + 1), -1e30, np.float32)
    logits[:, value] = 1e30
    np.testing.assert_array_equal(integral(logits), [value] * 4)


def test_the_mean_of_an_even_distribution_is_half_of_n():
    np.testing.assert_allclose(integral(jnp.zeros((1, BINS + 1))), [BINS / 2], rtol=1e-6)


@pytest.mark.parametrize("bins", [1, 4, BINS])
def test_equal_to_the_paper(bins):
    rng = np.random.default_rng(bins)
    logits = rng.normal(0, 4, (200, bins + 1)).astype(np.float32)
    targets = rng.uniform(-1, bins + 1, 200).astype(np.float32)
    targets[:3] = 0, bins, int(bins / 2)  # the ends, and a whole number
    expected = [plain_loss(*each) for each in zip(logits.astype(np.float64), targets, strict=True)]
    np.testing.assert_allclose(
        distribution_focal_loss(logits, targets), expected, rtol=1e-4, atol=1e-5
    )


def test_least_for_the_two_neighbours_whose_mean_is_the_target():
    rng = np.random.default_rng(0)
    targets = np.append(rng.uniform(0, BINS - MARGIN, 60), [0.0, 3.0])
    below = np.floor(targets).astype(int)
    shares = np.zeros((len(targets), BINS + 1))
    rows = np.arange(len(targets))
    shares[rows, below], shares[rows, below + 1] = below + 1 - targets, targets - below
    optimum = np.log(np.maximum(shares, 1e-30)).astype(np.float32)
    np.testing.assert_allclose(integral(optimum), targets, atol=1e-5)
    others = optimum + rng.normal(0, 0.5, (20, *optimum.shape)).astype(np.float32)
    everywhere = np.tile(targets.astype(np.float32), (21, 1))
    least, *rest = np.asarray(distribution_focal_loss(np.stack([optimum, *others]), everywhere))
    # the entropy of the shares, below which no cross entropy can be
    entropy = -(shares * np.log(np.maximum(shares, 1e-30))).sum(1)
    np.testing.assert_allclose(least, entropy, atol=1e-4)
    assert (np.stack(rest) >= least - 1e-5).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits_keep_finite_values_and_gradients(dtype):
    values = jnp.array([-1e30, -1e4, 0, 1e4, 1e30], dtype)
    logits = jnp.stack(jnp.meshgrid(values, values, values), axis=-1).reshape(-1, 3)
    targets = jnp.float32([0, 0.7, 9])[:, None]
    for function in (
        lambda x: integral(x).sum(),
        lambda x: distribution_focal_loss(jnp.stack([x] * 3), targets * jnp.ones(len(x))).sum(),
    ):
        value, gradient = jax.value_and_grad(function)(logits)
        assert value.dtype == jnp.float32
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient).all()


@pytest.mark.optimized
def test_gradients_are_those_of_the_formulas():
    # dDFL / dx = S - (the shares of the two neighbours); d mean / dx_j = S_j (j - mean)
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, BINS + 1)
    share = np.exp(logits) / np.exp(logits).sum()
    two = np.zeros(BINS + 1)
    two[5], two[6] = 0.75, 0.25
    x, y = jnp.float32(logits)[None], jnp.float32([5.25])
    gradient = jax.grad(lambda x: distribution_focal_loss(x, y).sum())(x)
    np.testing.assert_allclose(gradient[0], share - two, atol=1e-5)
    of_mean = jax.grad(lambda x: integral(x).sum())(x)
    mean = (share * np.arange(BINS + 1)).sum()
    np.testing.assert_allclose(of_mean[0], share * (np.arange(BINS + 1) - mean), atol=1e-5)
