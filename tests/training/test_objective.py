"""The two losses of a batch: normalisers by hand, classes' own boxes, decoded boxes, OHEM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retina_jax.config import default_config
from retina_jax.ops.boxes import decode, encode
from retina_jax.ops.losses import sigmoid_cross_entropy
from retina_jax.training import objective
from retina_jax.types import Predictions, Targets

ANCHORS = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]], np.float32)
BOXES = ANCHORS + np.array([1, 1, 2, 2], np.float32)


def targets(labels, ignore=()):
    labels = np.array(labels)
    foreground = labels >= 0
    boxes = np.where(foreground[:, None], BOXES, ANCHORS)
    return Targets(
        labels=labels,
        boxes=boxes,
        deltas=np.asarray(encode(boxes, ANCHORS)),
        foreground=foreground,
        ignore=np.isin(np.arange(4), ignore),
    )


def sums(classification, box, foreground, selected=(0, 0)):
    sums = [jnp.array(x, jnp.float32) for x in (classification, box, foreground, selected)]
    by_level = jnp.stack(sums[:3], axis=1)[..., None] * jnp.array([0.75, 0.25])
    return objective.ImageLosses(*sums, by_level)


def shares(normalizer, foreground, **loss):
    config = default_config()
    config.loss.update({"normalizer": normalizer, **loss})
    given = sums([6.0, 2.0], [3.0, 0.0], foreground, (4, 2))
    counts = objective.batch_counts(given.foreground, given.selected, None, lambda x: x)
    losses, ema = objective.normalize(given, counts, jnp.array(100.0), config)
    parts = losses.classification, losses.box, ema
    levels = objective.normalize_levels(given, counts, jnp.array(100.0), config)
    whole = jnp.array([*parts[:2], given.foreground.sum()])
    np.testing.assert_allclose(levels, whole[:, None] * np.array([0.75, 0.25]), rtol=1e-6)
    return tuple(float(x) for x in parts)


def test_normalisers_by_hand():
    assert shares("foreground", (3, 1)) == pytest.approx((8 / 4, 3 / 4, 100))
    assert shares("foreground", (0, 0)) == pytest.approx((8, 3, 100))
    assert shares("foreground_plus_1", (3, 1)) == pytest.approx((8 / 5, 3 / 5, 100))
    # each image by its own, at least 1, then the mean of both
    assert shares("per_image", (3, 0)) == pytest.approx(((6 / 3 + 2) / 2, (3 / 3) / 2, 100))
    # 0.9 · 100 + 0.1 · 4
    assert shares("ema", (3, 1)) == pytest.approx((8 / 90.4, 3 / 90.4, 90.4), rel=1e-6)
    assert shares("ema", (0, 0))[2] == pytest.approx(90.1)


def test_ohems_classes_are_divided_by_what_it_chose():
    assert shares("foreground", (3, 1), classification="ohem") == pytest.approx((8 / 6, 3 / 4, 100))


def test_ignored_anchors_and_background_boxes_take_no_part():
    config = default_config()
    config.loss.classification = "cross_entropy"
    logits = jnp.zeros((1, 4, 2))
    deltas = jnp.ones((1, 4, 1, 4))
    batched = jax.tree.map(lambda x: x[None], targets([0, -1, -1, -1], ignore=[3]))
    found = objective.image_losses(Predictions([logits], [deltas]), batched, ANCHORS, config)
    assert float(found.classification[0]) == pytest.approx(3 * 2 * np.log(2))
    assert float(found.foreground[0]) == 1

    def box_sum(d):
        predictions = Predictions([logits], [d])
        return objective.image_losses(predictions, batched, ANCHORS, config).box.sum()

    gradient = jax.grad(box_sum)(deltas)[0]
    assert (gradient[0] != 0).any()
    assert (gradient[1:] == 0).all()


def test_the_losses_of_levels_are_those_of_their_anchors():
    config = default_config()
    config.loss.classification = "cross_entropy"
    logits = jnp.array([[[0.0], [1.0], [2.0], [3.0]]])
    deltas = jnp.ones((1, 4, 1, 4))
    batched = jax.tree.map(lambda x: x[None], targets([0, -1, 0, 0], ignore=[1]))
    by_level = [jnp.split(x, [2, 3], axis=1) for x in (logits, deltas)]
    found = objective.image_losses(Predictions(*by_level), batched, ANCHORS, config)
    expected = np.log1p(np.exp(-logits[0, :, 0])) * np.array([1, 0, 1, 1])  # the second is ignored
    np.testing.assert_allclose(found.by_level[0, 0], [expected[0], *expected[2:]], rtol=1e-6)
    np.testing.assert_allclose(found.by_level[0, 1].sum(), found.box[0], rtol=1e-6)
    assert found.by_level[0, 2].tolist() == [1, 1, 1]


def box_loss(deltas, truth, config):
    outputs = objective.own_outputs(deltas, truth)
    return objective.box_loss(outputs, lambda: decode(outputs, ANCHORS), truth, config)


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "giou", "diou", "ciou"])
def test_a_perfect_box_costs_nothing(kind):
    config = default_config()
    config.loss.box = kind
    truth = targets([0, 1, -1, -1])
    loss = box_loss(jnp.asarray(truth.deltas)[:, None], truth, config)
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    off = box_loss(jnp.asarray(truth.deltas)[:, None] + 0.3, truth, config)
    np.testing.assert_array_equal(np.asarray(off) > 0.01, truth.foreground)


def test_with_a_box_for_each_class_an_anchor_learns_its_own():
    config = default_config()
    truth = targets([2, -1, 0, -1])
    deltas = jnp.zeros((4, 3, 4))
    gradient = jax.grad(lambda d: box_loss(d, truth, config).sum())(deltas)
    touched = {(int(a), int(k)) for a, k, _ in np.argwhere(np.asarray(gradient) != 0)}
    assert touched == {(0, 2), (2, 0)}


def test_centerness_weighs_the_box_losses_and_has_a_loss_of_its_own():
    """Anchors 0 and 1 lie 1 px off the middle of boxes of 11 px; 3 is outside its box."""
    config = default_config()
    config.model.centerness = True
    config.loss.box = "giou"
    truth = targets([0, 1, -1, 0])
    boxes = np.array(truth.boxes)
    boxes[3] = ANCHORS[3] + 8  # matched by IoU, say
    truth = truth.replace(boxes=boxes, deltas=np.asarray(encode(boxes, ANCHORS)))
    by_hand = [4 / 7, 4 / 7, 0]  # √(4/7 · 4/7): 4 px to the left and the top, 7 to the others
    logits, deltas = jnp.zeros((4, 2)), jnp.full((4, 1, 4), 0.1)
    central = jnp.array([0.0, 2.0, 5.0, -1.0])
    given = Predictions([logits[None]], [deltas[None]], [central[None]])
    batched = jax.tree.map(lambda x: x[None], truth)
    found = objective.image_losses(given, batched, ANCHORS, config)
    plain = np.asarray(box_loss(deltas, truth, config))
    np.testing.assert_allclose(found.box_weight, [sum(by_hand)], rtol=1e-6)
    np.testing.assert_allclose(found.box, [plain[[0, 1, 3]] @ by_hand], rtol=1e-5)
    p = 1 / (1 + np.exp(-np.array([0.0, 2.0, -1.0])))
    entropy = -(by_hand * np.log(p) + (1 - np.array(by_hand)) * np.log(1 - p))
    np.testing.assert_allclose(found.extra["centerness"], [entropy.sum()], rtol=1e-5)
    np.testing.assert_allclose(found.by_level[0, 3], [entropy.sum()], rtol=1e-5)

    counts = objective.batch_counts(
        found.foreground, found.selected, found.box_weight, lambda sums: sums
    )
    losses, _ = objective.normalize(found, counts, jnp.array(100.0), config)
    weight = max(sum(by_hand), 1)
    np.testing.assert_allclose(losses.box, plain[[0, 1, 3]] @ by_hand / weight, rtol=1e-5)
    np.testing.assert_allclose(losses.extra["centerness"], entropy.sum() / 3, rtol=1e-5)
    total = losses.classification + losses.box + losses.extra["centerness"]
    np.testing.assert_allclose(losses.total(config), total, rtol=1e-6)


def test_ohem_trains_the_anchors_it_chose():
    config = default_config()
    config.loss.classification = "ohem"
    config.loss.ohem_examples = 2
    logits = jnp.array([[0.0], [3.0], [1.0], [9.0]])
    truth = targets([0, -1, -1, -1], ignore=[3])
    loss, count = objective.classification_loss(logits, truth, ANCHORS, config.loss)
    plain = sigmoid_cross_entropy(logits, truth.labels)
    np.testing.assert_allclose(loss, [0, plain[1], plain[2], 0], rtol=1e-6)
    assert float(count) == 2
