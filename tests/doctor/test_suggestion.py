"""What the doctor suggests helps, and is what ``data.fit`` chooses."""

from pathlib import Path

import numpy as np
import pytest

from retina_jax.config import default_config, validate
from retina_jax.config.values import changed_config
from retina_jax.data.data_set import Split
from retina_jax.doctor.anchor_recall import group_recall
from retina_jax.doctor.fit_anchors import ENOUGH
from retina_jax.doctor.suggestion import ANCHORS, Boxes, fitted_anchors, reach_of, suggest


def config_with(**data):
    config = default_config()
    config.data.buckets, config.data.short_side, config.data.long_side = BUCKETS, 96, 160
    config.data.update(data)
    return config


BUCKETS = ((96, 160), (160, 96))
PICTURE = Split(
    name="train", directory=Path("somewhere"), class_names=("a", "b"), category_ids=(1, 2),
    image_ids=np.arange(1), sizes=np.array([(96, 160)], np.int32),
    box_counts=np.zeros(1, np.int64), file_names=np.array([""]), _records=[],
)  # fmt: skip


def boxes_of(count, width, height, seed=0, spread=0.1):
    """Around ``width`` × ``height``, anywhere in a picture of 96 × 160."""
    rng = np.random.default_rng(seed)
    sides = np.array([width, height]) * np.exp(rng.normal(0, spread, (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * np.maximum([160, 96] - sides, 0)
    return np.concatenate([corner, corner + sides], axis=1)


def suggestion_for(config, *kinds):
    """The suggestion; the boxes, whose labels are their kinds; and the kinds as groups."""
    labels = np.repeat(np.arange(len(kinds)), [len(kind) for kind in kinds])
    boxes = Boxes(PICTURE, np.zeros(len(labels), np.int64), np.concatenate(kinds), labels)
    groups = {f"kind {i}": labels == i for i in range(len(kinds))}
    return suggest(boxes, groups, reach_of(boxes, config)), boxes, groups


def promised(config, suggestion, boxes, groups):
    """The reach of the changed config, which gives the recall that was promised."""
    changed = changed_config(config, suggestion.fields)
    validate(changed)
    reached = reach_of(boxes, changed)
    assert group_recall(reached.iou >= 0.5, groups) == suggestion.after
    return reached


def test_no_change_where_every_box_is_within_reach():
    assert suggestion_for(config_with(), boxes_of(200, 40, 40))[0] is None


def test_nor_where_nothing_helps():
    assert suggestion_for(config_with(), boxes_of(200, 1, 1))[0] is None


def test_small_boxes_ask_for_the_anchors_that_a_fit_chooses():
    config = config_with()
    suggestion, boxes, groups = suggestion_for(config, boxes_of(100, 20, 20), boxes_of(100, 40, 40))
    assert suggestion.fields == {
        name: value
        for name, value in fitted_anchors(boxes, config).items()
        if value != config.anchors[name.partition(".")[2]]
    }
    assert suggestion.fields["anchors.scale"] < 4
    assert suggestion.before["kind 0"] < 0.5
    assert promised(config, suggestion, boxes, groups).is_enough
    assert suggestion.pixels_factor == 1
    assert suggestion.anchors_factor < 1
    assert suggestion.text() == f"with {suggestion.flags()}"  # no cost
    assert config.anchors.scale == 4  # the user's is left alone


def test_a_fit_keeps_what_is_set():
    config = config_with()
    _, boxes, _ = suggestion_for(config, boxes_of(100, 20, 20))
    free = frozenset(ANCHORS) - {"anchors.scale"}
    assert fitted_anchors(boxes, config, free).keys() == free


def test_long_boxes_ask_for_other_ratios():
    suggestion, *_ = suggestion_for(config_with(), boxes_of(300, 100, 12, spread=0.05))
    assert max(suggestion.fields["anchors.ratios"]) < 0.2
    assert min(suggestion.after.values()) >= ENOUGH
    assert "'(" in suggestion.flags()  # quoted for a shell
    assert " " not in suggestion.flags().split("=", 1)[1].split(" --")[0]


@pytest.mark.parametrize("side", [5, 7])
def test_boxes_smaller_than_the_grid_ask_for_larger_inputs(side):
    config = config_with(train_short_sides=(64, 96))
    suggestion, boxes, groups = suggestion_for(config, boxes_of(400, side, side))
    factor = suggestion.pixels_factor**0.5
    assert factor in (1.5, 2)
    fields = suggestion.fields
    assert fields["data.short_side"] == 96 * factor
    assert fields["data.long_side"] == 160 * factor
    assert fields["data.train_short_sides"] == (64 * factor, 96 * factor)
    assert all(side % 32 == 0 for bucket in fields["data.buckets"] for side in bucket)
    assert "times the pixels" in suggestion.text()
    assert list(fields)[-1].startswith("anchors.")
    promised(config, suggestion, boxes, groups)


def test_inputs_are_no_larger_than_needed():
    suggestion, boxes, groups = suggestion_for(config_with(), boxes_of(400, 13, 13))
    assert suggestion.fields["data.short_side"] == 144
    assert suggestion.fields["data.buckets"] == ((160, 256), (256, 160))
    assert promised(config_with(), suggestion, boxes, groups).is_enough
