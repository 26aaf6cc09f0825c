"""Candidates: against a plain search over all scores."""

import jax.numpy as jnp
import numpy as np
import pytest

from retina_jax.ops.anchors import pyramid_anchors
from retina_jax.ops.boxes import decode
from retina_jax.ops.postprocess import class_scores, scores_of, select_candidates
from retina_jax.types import Predictions


def random_outputs(seed, classes=3, boxes=1):
    rng = np.random.default_rng(seed)
    anchors = pyramid_anchors((64, 96))
    logits = [rng.normal(-3, 2, (len(a), classes)).astype(np.float32) for a in anchors]
    scores = [np.asarray(class_scores(x, softmax=False)) for x in logits]
    deltas = [rng.normal(0, 0.3, (len(a), boxes, 4)).astype(np.float32) for a in anchors]
    return scores, deltas, anchors


@pytest.mark.parametrize("boxes", [1, 3])
def test_equal_to_a_plain_search(boxes):
    scores, deltas, anchors = random_outputs(0, boxes=boxes)
    size = np.array([60, 90], np.int32)
    found = select_candidates(scores, deltas, anchors, size, 0.2, 50)
    expected = []
    for level_scores, level_deltas, level_anchors in zip(scores, deltas, anchors, strict=True):
        pairs = [(s, a, c) for (a, c), s in np.ndenumerate(level_scores) if s > 0.2]
        for s, a, c in sorted(pairs, reverse=True)[:50]:
            box = np.asarray(decode(level_deltas[a, min(c, boxes - 1)], level_anchors[a]))
            expected.append((s, c, *np.clip(box, 0, [90, 60, 90, 60])))
    alive = np.asarray(found.scores) > 0
    ours = np.column_stack([found.scores, found.labels, found.boxes])[alive]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-3)


def test_the_number_of_places_is_fixed_and_empty_ones_score_zero():
    scores, deltas, anchors = random_outputs(1)
    size = np.array([64, 96], np.int32)
    found = select_candidates(scores, deltas, anchors, size, 0.999999, 1000)
    places = sum(min(1000, x.size) for x in scores)
    assert found.boxes.shape == (places, 4)
    assert (np.asarray(found.scores) == 0).all()


def test_boxes_stay_whole_where_they_are_cut_after_nms():
    scores, deltas, anchors = random_outputs(0)
    size = np.array([60, 90], np.int32)
    whole = select_candidates(scores, deltas, anchors, size, 0.2, 50, clip_to_image=False)
    cut = select_candidates(scores, deltas, anchors, size, 0.2, 50)
    assert float(whole.boxes.min()) < 0
    np.testing.assert_array_equal(np.clip(whole.boxes, 0, [90, 60, 90, 60]), cut.boxes)


def test_softmax_scores_leave_the_background_out():
    logits = jnp.log(jnp.array([[0.1, 0.2, 0.7]]))
    np.testing.assert_allclose(class_scores(logits, softmax=True), [[0.1, 0.2]], rtol=1e-5)


def test_centerness_is_multiplied_into_the_score():
    """Its geometric mean with the class probability, so that products decide the order."""
    logits = [np.array([[0.0, 2.0], [-1.0, 3.0]], np.float32), np.zeros((1, 2), np.float32)]
    central = [np.array([0.0, -2.0], np.float32), np.array([np.inf], np.float32)]
    sigmoid = lambda x: 1 / (1 + np.exp(-np.float64(x)))  # noqa: E731
    scores = scores_of(Predictions(logits, [], central), softmax=False)
    expected = np.sqrt(sigmoid(logits[0]) * sigmoid(central[0])[:, None])
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)
    np.testing.assert_allclose(scores[1], np.sqrt(0.5), rtol=1e-6)
    plain = scores_of(Predictions(logits, []), softmax=False)
    np.testing.assert_array_equal(plain[0], class_scores(logits[0], softmax=False))
