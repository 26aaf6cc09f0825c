"""The nearest anchor is the best: by hand and against all pairs."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.config import default_config
from retina_jax.data.augment import move_boxes, whole
from retina_jax.data.data_set import Split
from retina_jax.data.loader import placements
from retina_jax.doctor.anchor_recall import InputBoxes, at_input, best_anchor_iou, group_recall
from retina_jax.models.retinanet import anchors_for
from retina_jax.ops.boxes import pairwise_iou

BUCKETS = ((96, 160), (160, 96))
SYSTEMS = {
    "default": {},
    "torchvision": dict(
        order="ratio_major", rounded=True, truncate_sizes=True, stride_from="grid"
    ),
    "tf_model_garden": dict(ratios=(2.0, 1.0, 0.5), offset=0.5),
    "small_and_odd": dict(scale=1.3, octaves=(0.0, 0.7), ratios=(0.3, 1.7), offset=0.25),
}  # fmt: skip


def config_with(anchors=(), **data):
    config = default_config()
    config.data.buckets, config.data.short_side, config.data.long_side = BUCKETS, 96, 160
    config.data.update(data)
    config.anchors.update(dict(anchors))
    return config


def split_of(sizes):
    rows = len(sizes)
    return Split(
        name="train",
        directory=Path("somewhere"),
        class_names=("thing",),
        category_ids=(1,),
        image_ids=np.arange(rows),
        sizes=np.array(sizes, np.int32),
        box_counts=np.zeros(rows, np.int64),
        file_names=np.array([""] * rows),
        _records=[],
    )


def iou_of(box, config, bucket=0):
    return best_anchor_iou(
        InputBoxes(np.array([box], np.float64), np.array([bucket])), BUCKETS, config.anchors
    )[0]


def test_iou_by_hand():
    one_square = config_with(dict(octaves=(0.0,), ratios=(1.0,)))
    # P3 has squares of 32 at multiples of 8
    assert iou_of([48, 48, 80, 80], one_square) == pytest.approx(1)
    # 16 inside 32: a quarter
    assert iou_of([56, 56, 72, 72], one_square) == pytest.approx(0.25)
    # four pixels off along x and y: 28² shared of 2 · 32² - 28²
    assert iou_of([52, 52, 84, 84], one_square) == pytest.approx(784 / 1264)
    # centre (12, 8) to the nearest place (8, 8) or (16, 8): 28 · 32 of 2048 - 896
    assert iou_of([-4, -8, 28, 24], one_square) == pytest.approx(896 / 1152)


def test_boxes_beyond_the_last_place_take_the_last_place():
    one_square = config_with(dict(octaves=(0.0,), ratios=(1.0,)))
    # columns of P3 end at 19 · 8 = 152; centre 158 is 6 off, centre y 48 is on: 26 · 32
    assert iou_of([142, 32, 174, 64], one_square) == pytest.approx(832 / (2048 - 832))


def test_a_box_of_no_area_scores_nothing():
    assert iou_of([40, 40, 40, 60], config_with()) == 0


coordinate = st.floats(-20, 180, width=32)
side = st.one_of(st.floats(0, 8, width=32), st.floats(8, 200, width=32))


@pytest.mark.parametrize("system", SYSTEMS)
@given(boxes=st.lists(st.tuples(coordinate, coordinate, side, side), min_size=1, max_size=20))
def test_the_nearest_anchor_is_the_best_of_all(system, boxes):
    config = config_with(SYSTEMS[system])
    xywh = np.array(boxes, np.float64)
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    for number, bucket in enumerate(BUCKETS):
        every = np.concatenate(anchors_for(config, bucket))
        expected = np.asarray(pairwise_iou(xyxy.astype(np.float32), every)).max(axis=1)
        shown = InputBoxes(xyxy, np.full(len(xyxy), number))
        found = best_anchor_iou(shown, BUCKETS, config.anchors)
        solid = (xywh[:, 2:] > 1e-3).all(axis=1)  # below, float32 says anything
        np.testing.assert_allclose(found[solid], expected[solid], atol=3e-5)


def test_every_box_is_looked_at_in_its_own_bucket():
    # so flat an input has one row of P7, at 0: it is no place of the other bucket's
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 90, (2000, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 70, (2000, 2))], axis=1)
    bucket = rng.integers(0, 2, 2000)
    config = config_with()
    mixed = best_anchor_iou(InputBoxes(boxes, bucket), BUCKETS, config.anchors)
    for number in (0, 1):
        mine = bucket == number
        alone = InputBoxes(boxes[mine], bucket[mine])
        np.testing.assert_array_equal(mixed[mine], best_anchor_iou(alone, BUCKETS, config.anchors))


def test_boxes_lie_at_the_input_where_the_loader_puts_them():
    sizes = [(480, 640), (640, 481), (300, 1000), (50, 60)]
    split, config = split_of(sizes), config_with()
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 4, 50)
    corner = rng.uniform(-20, 300, (50, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 400, (50, 2))], axis=1)
    shown = at_input(split, rows, boxes, config)
    for i, row in enumerate(rows):
        placement = placements(split, config)[row]
        moved, _ = move_boxes(boxes[i : i + 1], sizes[row], whole(placement), 0.0)
        np.testing.assert_allclose(shown.boxes[i], moved[0])
        assert shown.bucket[i] == placement.bucket


def test_group_recall_leaves_small_groups_out():
    within = np.array([True] * 6 + [False] * 6)
    groups = {"all": np.ones(12, bool), "few": np.arange(12) < 3}
    assert group_recall(within, groups) == {"all": 0.5}
    assert group_recall(within, groups, least=1) == {"all": 0.5, "few": 1.0}
