"""Anchors for boxes: enough recall, few shapes, near the boxes."""

import dataclasses

import numpy as np
import pytest

from retina_jax.config import default_config
from retina_jax.doctor.anchor_recall import InputBoxes, best_anchor_iou
from retina_jax.doctor.fit_anchors import ENOUGH, MOST_RATIOS, OCTAVES, fit_anchors, recalls

BUCKETS = ((256, 320),)
ANCHORS = default_config().anchors.to_dict()


def boxes_of(count, width, height, seed=0, spread=0.1):
    rng = np.random.default_rng(seed)
    sides = np.array([width, height]) * np.exp(rng.normal(0, spread, (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * np.maximum([320, 256] - sides, 0)
    return np.concatenate([corner, corner + sides], axis=1)


def fitted(*kinds, **options):
    boxes = np.concatenate(kinds)
    labels = np.repeat(np.arange(len(kinds)), [len(kind) for kind in kinds])
    shown = InputBoxes(boxes, np.zeros(len(boxes), np.int64))
    chosen = fit_anchors(shown, labels, BUCKETS, ANCHORS, 0.5, **options)
    iou = best_anchor_iou(shown, BUCKETS, ANCHORS | dataclasses.asdict(chosen))
    return chosen, *recalls(iou >= 0.5, labels), iou


@pytest.mark.parametrize(
    "kinds",
    [
        [boxes_of(200, 16, 40, spread=0.3)],  # pedestrians
        [boxes_of(100, 18, 18), boxes_of(200, 60, 60), boxes_of(80, 70, 50)],  # cells
        [boxes_of(100, 200, 25), boxes_of(100, 120, 180)],  # documents
        [boxes_of(10, 40, 40)],
        [boxes_of(1, 40, 40)],
    ],
)
def test_boxes_are_within_reach(kinds):
    chosen, overall, by_class, _ = fitted(*kinds)
    assert min([overall, *by_class.values()]) >= ENOUGH
    assert chosen.octaves in OCTAVES
    assert 1 <= len(chosen.ratios) <= MOST_RATIOS
    assert list(chosen.ratios) == sorted(chosen.ratios)


def test_boxes_of_one_shape_need_few_anchors():
    chosen, *_ = fitted(boxes_of(200, 50, 50, spread=0.02))
    assert len(chosen) <= 2
    assert 0.9 < chosen.ratios[0] < 1.1


def test_boxes_out_of_reach_cost_the_others_nothing():
    # of 2 pixels, no anchor of the pyramid comes near
    _, _, by_class, _ = fitted(boxes_of(60, 2, 2), boxes_of(200, 60, 20))
    assert by_class[0] < 0.1
    assert by_class[1] >= ENOUGH


def test_a_rare_class_counts_only_where_it_has_enough_boxes():
    *_, by_class, _ = fitted(boxes_of(300, 60, 60), boxes_of(49, 2, 2))
    assert set(by_class) == {0}


def test_values_that_are_set_are_kept():
    chosen, *_ = fitted(boxes_of(100, 20, 40), kept=("scale", "ratios"))
    assert chosen.scale == 4.0
    assert chosen.ratios == (0.5, 1.0, 2.0)
    chosen, *_ = fitted(boxes_of(100, 20, 40), kept=("octaves",))
    assert chosen.octaves == ANCHORS["octaves"]


def test_ratios_of_turned_images_come_with_their_inverse():
    chosen, *_ = fitted(boxes_of(200, 20, 60), turned=True)
    inverse = sorted(1 / ratio for ratio in chosen.ratios)
    np.testing.assert_allclose(inverse, chosen.ratios, rtol=0.01)
    assert max(chosen.ratios) > 2


def test_the_order_of_the_boxes_changes_nothing():
    boxes = np.concatenate([boxes_of(100, 20, 40, spread=0.4), boxes_of(50, 80, 30)])
    order = np.random.default_rng(3).permutation(len(boxes))
    labels = np.arange(len(boxes)) % 2
    one, two = (
        fit_anchors(
            InputBoxes(boxes[rows], np.zeros(len(rows), np.int64)), labels[rows], BUCKETS,
            ANCHORS, 0.5,
        )
        for rows in (np.arange(len(boxes)), order)
    )  # fmt: skip
    assert one == two
