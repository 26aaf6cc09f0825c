"""Kinds of error: by hand, and counted as hotcoco's TIDE counts them."""

from collections import Counter

import numpy as np
import pytest
from test_coco import random_case

from retina_jax.evaluation import coco
from retina_jax.evaluation.report_errors import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    CORRECT,
    CROWD,
    DUPLICATE,
    FOUND,
    FOUND_WRONGLY,
    IGNORED,
    LOCALISATION,
    MISSED,
    ImageErrors,
    classify,
    errors_of,
)

TIDE = {"Cls": CLASSIFICATION, "Loc": LOCALISATION, "Both": BOTH, "Dupe": DUPLICATE,
        "Bkg": BACKGROUND}  # fmt: skip


def test_every_kind_by_hand():
    """Two objects of different classes; the first is found by the first detection."""
    overlaps = np.array(
        [[0.8, 0.0], [0.7, 0.0], [0.0, 0.6], [0.0, 0.3], [0.3, 0.0], [0.05, 0.0], [0.49, 0.5]]
    )
    same = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [1, 0], [1, 0]], bool)
    matched = np.array([True, *[False] * 6])
    kinds, states = classify(overlaps, same, matched, np.array([True, False]))
    # the last is in the wrong place of its class, before it is an object of another class
    assert kinds.tolist() == [
        CORRECT, DUPLICATE, CLASSIFICATION, LOCALISATION, BOTH, BACKGROUND, LOCALISATION
    ]  # fmt: skip
    assert states.tolist() == [FOUND, FOUND_WRONGLY]


def test_an_object_beside_which_all_is_wrong_is_missed():
    overlaps, same = np.array([[0.3], [0.05]]), np.array([[False], [True]])
    kinds, states = classify(overlaps, same, np.zeros(2, bool), np.zeros(1, bool))
    assert kinds.tolist() == [BOTH, BACKGROUND]
    assert states.tolist() == [MISSED]


def test_without_objects_all_detections_are_background():
    kinds, states = classify(np.zeros((2, 0)), np.zeros((2, 0), bool), np.zeros(2, bool), [])
    assert kinds.tolist() == [BACKGROUND] * 2
    assert len(states) == 0


def test_the_error_of_an_image_by_hand():
    """(1 - 0.9)² + 0.6² for the detections, 1 for the missed object; crowds do not count."""
    boxes = np.zeros((3, 4))
    errors = ImageErrors(
        1, boxes, np.zeros(3, int), np.array([FOUND, MISSED, CROWD]), np.array([0.9, 0, 0]),
        boxes, np.zeros(3, int), np.array([0.9, 0.6, 0.5]),
        np.array([CORRECT, BACKGROUND, IGNORED]),
    )  # fmt: skip
    assert errors.error == pytest.approx(0.01 + 0.36 + 1)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("limits", [coco.LIMITS, (1, 2, 3)])
def test_the_counts_are_those_of_tide(seed, limits):
    """Without crowds, which hotcoco takes for objects when it names the error of a detection."""
    truth, detections = random_case(seed)
    truth["annotations"] = [a | {"iscrowd": 0} for a in truth["annotations"]]
    detections = detections * (2 if limits[-1] == 3 else 1)
    evaluation = coco.evaluate_boxes(truth, detections, limits=limits)
    errors = errors_of(truth, detections, evaluation)
    kinds = Counter(int(k) for e in errors for k in e.kinds)
    states = Counter(int(s) for e in errors for s in e.object_states)
    counts = evaluation.tide_errors()["counts"]
    assert {name: kinds[k] for name, k in TIDE.items()} | {"Miss": states[MISSED]} == counts
    assert (kinds[IGNORED] > 0) == (limits[-1] == 3)
    assert kinds.total() == len(detections)


@pytest.mark.parametrize("seed", range(2))
def test_detections_on_crowds_are_ignored(seed):
    truth, detections = random_case(seed)
    evaluation = coco.evaluate_boxes(truth, detections)
    errors = errors_of(truth, detections, evaluation)
    states = Counter(int(s) for e in errors for s in e.object_states)
    assert states[CROWD] == sum(a["iscrowd"] for a in truth["annotations"])
    assert any((e.kinds == IGNORED).any() for e in errors)
    for e in errors:
        found = e.object_scores[e.object_states == FOUND]
        assert sorted(found) == sorted(e.scores[e.kinds == CORRECT])
        assert (np.diff(e.scores) <= 0).all()
