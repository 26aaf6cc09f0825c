"""Candidates: against a plain search over all scores."""

import numpy as np

from retina_jax.anchors import pyramid_anchors
from retina_jax.boxes import decode
from retina_jax.postprocess import select_candidates


def random_outputs(seed, classes=3):
    rng = np.random.default_rng(seed)
    anchors = pyramid_anchors((64, 96))
    logits = [rng.normal(-3, 2, (len(a), classes)).astype(np.float32) for a in anchors]
    deltas = [rng.normal(0, 0.3, (len(a), 4)).astype(np.float32) for a in anchors]
    return logits, deltas, anchors


def test_equal_to_a_plain_search():
    logits, deltas, anchors = random_outputs(0)
    size = np.array([60, 90], np.int32)
    found = select_candidates(logits, deltas, anchors, size, 0.2, 50)
    expected = []
    for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
        scores = 1 / (1 + np.exp(-level_logits.astype(np.float64)))
        pairs = [(s, a, c) for (a, c), s in np.ndenumerate(scores) if s > 0.2]
        for s, a, c in sorted(pairs, reverse=True)[:50]:
            box = np.asarray(decode(level_deltas[a], level_anchors[a]))
            expected.append((s, c, *np.clip(box, 0, [90, 60, 90, 60])))
    alive = np.asarray(found.scores) > 0
    ours = np.column_stack([found.scores, found.labels, found.boxes])[alive]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-3)


def test_the_number_of_places_is_fixed_and_empty_ones_score_zero():
    logits, deltas, anchors = random_outputs(1)
    size = np.array([64, 96], np.int32)
    found = select_candidates(logits, deltas, anchors, size, 0.999999, 1000)
    places = sum(min(1000, x.size) for x in logits)
    assert found.boxes.shape == (places, 4)
    assert (np.asarray(found.scores) == 0).all()
