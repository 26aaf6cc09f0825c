"""The generalized focal loss of a batch, against the paper's equations in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retina_jax.config import default_config
from retina_jax.training import objective
from retina_jax.types import Predictions, Targets

BINS, CLASSES = 5, 3
STRIDES = np.float32([[8, 8], [16, 12]])  # the second level's grid is not square
SIZES = (4, 2)
"""Numbers of anchors of two levels."""


def made(seed):
    """Two images: predictions, targets and anchors; two anchors in three are foreground."""
    rng = np.random.default_rng(seed)
    n, a = 2, sum(SIZES)
    corner = rng.uniform(0, 60, (a, 2))
    anchors = np.concatenate([corner, corner + rng.uniform(16, 40, (a, 2))], -1).astype(np.float32)
    labels = rng.integers(0, CLASSES, (n, a))
    labels[:, [1, 5]] = -1
    moved = anchors + rng.uniform(-9, 9, (n, a, 4))
    boxes = np.where(labels[..., None] >= 0, moved, anchors).astype(np.float32)
    ignore = np.zeros((n, a), bool)
    ignore[0, 1] = True
    targets = Targets(labels, boxes, np.zeros_like(boxes), labels >= 0, ignore)
    logits = rng.normal(-1, 2, (n, a, CLASSES)).astype(np.float32)
    outputs = rng.normal(0, 1, (n, a, 4, BINS + 1)).astype(np.float32)
    return logits, outputs, targets, anchors


def plain_iou(a, b):
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(sides[0], 0) * max(sides[1], 0)
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


def plain_giou(a, b):
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(sides[0], 0) * max(sides[1], 0)
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared
    hull = (np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2])).prod()
    return shared / union - (hull - union) / hull


def plain_box(share, anchor, stride):
    """The integral of four distributions, as a box."""
    left, top, right, bottom = share @ np.arange(BINS + 1)
    x, y = (anchor[:2] + anchor[2:]) / 2
    return np.array(
        [x - left * stride[0], y - top * stride[1], x + right * stride[0], y + bottom * stride[1]]
    )


def plain_losses(logits, outputs, targets, anchors, held=None):
    """Sums over the batch: QFL, weighted GIoU loss, weighted DFL, weights, foreground.

    In float64, one anchor at a time. ``held`` replaces the quality and weight of each anchor, which
    are returned last.
    """
    strides = np.repeat(STRIDES, SIZES, axis=0).astype(np.float64)
    sums, found = np.zeros(5), {}
    for at in np.ndindex(targets.labels.shape):
        label, box, anchor = targets.labels[at], targets.boxes[at], anchors[at[1]]
        share = np.exp(outputs[at].astype(np.float64))
        share /= share.sum(-1, keepdims=True)
        score = 1 / (1 + np.exp(-logits[at].astype(np.float64)))
        predicted = plain_box(share, anchor.astype(np.float64), strides[at[1]])
        found[at] = plain_iou(predicted, box), score.max()
        quality, weight = (held or found)[at]
        y = np.where(np.arange(CLASSES) == label, quality, 0)
        if not targets.ignore[at]:
            entropy = -((1 - y) * np.log(1 - score) + y * np.log(score))
            sums[0] += (np.abs(y - score) ** 2 * entropy).sum()
        if label < 0:
            continue
        x, y = (anchor[:2] + anchor[2:]) / 2
        distances = np.array([x - box[0], y - box[1], box[2] - x, box[3] - y])
        dfl = []
        for side in range(4):
            t = np.clip(distances[side] / strides[at[1]][side % 2], 0, BINS - 0.1)
            i = int(t)
            s = share[side]
            dfl.append(-((i + 1 - t) * np.log(s[i]) + (t - i) * np.log(s[i + 1])))
        sums[1:] += (
            weight * (1 - plain_giou(predicted, box)), weight * np.mean(dfl), weight, 1,
        )  # fmt: skip
    return sums, found


@pytest.fixture(scope="module")
def config():
    config = default_config()
    config.loss.update({"classification": "qfl", "box": "dfl", "dfl_bins": BINS})
    config.loss.update({"box_weight": 2.0})
    return config


@pytest.fixture(scope="module")
def total(config):
    """``(logits, outputs, targets, anchors) -> (total loss, parts)``, compiled once."""

    @jax.jit
    def total(logits, outputs, targets, anchors):
        split = [jnp.split(x, [SIZES[0]], axis=1) for x in (logits, outputs)]
        split[1] = [x.reshape(*x.shape[:2], 1, -1) for x in split[1]]
        sums = objective.image_losses(Predictions(*split), targets, anchors, config, STRIDES)
        counts = objective.batch_counts(
            sums.foreground, sums.selected, sums.box_weight, lambda tree: tree
        )
        losses, ema = objective.normalize(sums, counts, jnp.float32(100), config)
        levels = objective.normalize_levels(sums, counts, ema, config)
        return losses.total(config), (losses, levels)

    return total


def test_the_losses_are_those_of_the_paper(total):
    given = made(0)
    loss, (losses, levels) = total(*given)
    (qfl, giou, dfl, weight, foreground), _ = plain_losses(*given)
    assert weight > 1  # else the divisor would be 1
    parts = qfl / foreground, giou / weight, dfl / weight
    ours = losses.classification, losses.box, losses.extra["dfl"]
    np.testing.assert_allclose(ours, parts, rtol=1e-4)
    np.testing.assert_allclose(loss, parts[0] + 2 * parts[1] + 0.25 * parts[2], rtol=1e-5)
    np.testing.assert_allclose(levels.sum(1), [*parts[:2], foreground, parts[2]], rtol=1e-4)


def test_scores_and_boxes_have_no_gradient_as_target_and_weight_of_each_other(total):
    """Finite differences with the qualities, weights and counts held: else they would be others."""
    logits, outputs, targets, anchors = made(1)
    (*_, weight, foreground), held = plain_losses(logits, outputs, targets, anchors)

    def plain_total(logits, outputs):
        (qfl, giou, dfl, *_), _ = plain_losses(logits, outputs, targets, anchors, held)
        return qfl / foreground + 2 * giou / weight + 0.25 * dfl / weight

    gradients = jax.grad(lambda *x: total(*x, targets, anchors)[0], (0, 1))(logits, outputs)
    rng = np.random.default_rng(2)
    for which, gradient in enumerate(gradients):
        given = [x.astype(np.float64) for x in (logits, outputs)]
        for _ in range(3):
            direction, ends = rng.normal(0, 1, given[which].shape), []
            for step in (1e-5, -1e-5):
                moved = list(given)
                moved[which] = given[which] + step * direction
                ends.append(plain_total(*moved))
            slope = (ends[0] - ends[1]) / 2e-5
            assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-3)


def test_without_qfl_boxes_have_no_weights_and_the_normalizer_divides(config):
    plain = config.copy_and_resolve_references()
    plain.loss.classification = "focal"
    logits, outputs, targets, anchors = made(0)
    flat = [x.reshape(*x.shape[:2], *shape) for x, shape in ((logits, (-1,)), (outputs, (1, -1)))]
    levels = Predictions(*[np.split(x, [SIZES[0]], axis=1) for x in flat])
    sums = objective.image_losses(levels, targets, anchors, plain, STRIDES)
    assert sums.box_weight is None
    ones = dict.fromkeys(np.ndindex(2, sum(SIZES)), (0, 1))
    (_, giou, dfl, _, foreground), _ = plain_losses(logits, outputs, targets, anchors, ones)
    counts = objective.batch_counts(sums.foreground, sums.selected, None, lambda tree: tree)
    losses, _ = objective.normalize(sums, counts, jnp.float32(100), plain)
    np.testing.assert_allclose(losses.box, giou / foreground, rtol=1e-4)
    np.testing.assert_allclose(losses.extra["dfl"], dfl / foreground, rtol=1e-4)


def test_with_deltas_the_quality_is_the_iou_of_the_decoded_box():
    config = default_config()
    config.loss.classification = "qfl"  # with smooth L1, which decodes nothing itself
    anchors = np.float32([[0, 0, 10, 10], [20, 0, 30, 10]])
    boxes = np.float32([[[0, 0, 10, 5], [20, 0, 30, 10]]])  # IoU 1/2 with the anchor, 1
    labels = np.array([[0, 1]])
    targets = Targets(labels, boxes, np.zeros_like(boxes), labels >= 0, np.zeros((1, 2), bool))
    logits = np.zeros((1, 2, 2), np.float32)
    logits[0, 1, 1] = 30.0  # sure of the second box
    predictions = Predictions([logits], [np.zeros((1, 2, 1, 4), np.float32)])
    sums = objective.image_losses(predictions, targets, anchors, config)
    # at a score of 1/2: nothing where the quality is 1/2, (1/2)² log 2 where it is 0
    np.testing.assert_allclose(sums.classification, [2 * 0.25 * np.log(2)], rtol=1e-5)
    np.testing.assert_allclose(sums.box_weight, [0.5 + 1], rtol=1e-5)
