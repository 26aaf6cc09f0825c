"""Box arithmetic: values by hand, then relations that hold for all boxes."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.ops import boxes

corner = st.floats(0, 400, width=32)
side = st.floats(4, 200, width=32)
box = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], corner, corner, side, side)
some_boxes = st.lists(box, min_size=4, max_size=4).map(lambda b: np.array(b, np.float32))


def test_iou_by_hand():
    a = np.array([[0, 0, 10, 10], [0, 0, 4, 5]], np.float32)
    b = np.array([[5, 5, 15, 15], [20, 20, 30, 30], [0, 0, 10, 10]], np.float32)
    # 25 shared of 100 + 100 - 25; 20 of 100
    expected = [[25 / 175, 0, 1], [0, 0, 20 / 100]]
    np.testing.assert_allclose(boxes.pairwise_iou(a, b), expected, rtol=1e-6)


def test_boxes_of_no_area_score_zero_and_are_finite():
    flat = np.array([[3, 3, 3, 9], [5, 5, 5, 5], [9, 9, 1, 1]], np.float32)
    iou = boxes.pairwise_iou(flat, np.concatenate([flat, [[0, 0, 10, 10]]]).astype(np.float32))
    np.testing.assert_array_equal(iou, 0)


@given(some_boxes, some_boxes)
def test_the_iou_of_pairs_is_that_of_the_diagonal(a, b):
    b[0], b[1] = a[0], 0  # the same box, and one without area
    expected = np.diag(boxes.pairwise_iou(a, b))
    np.testing.assert_allclose(boxes.paired_iou(a, b), expected, rtol=1e-6)


@given(some_boxes, some_boxes)
def test_iou_is_symmetric_and_between_0_and_1(a, b):
    iou = np.asarray(boxes.pairwise_iou(a, b))
    assert ((iou >= 0) & (iou <= 1)).all()
    np.testing.assert_allclose(iou, boxes.pairwise_iou(b, a).T, rtol=1e-6)


@given(some_boxes, st.floats(0.25, 4, width=32), st.floats(-50, 50, width=32))
def test_iou_ignores_scale_and_shift(a, scale, shift):
    moved = (a * scale + shift).astype(np.float32)
    np.testing.assert_allclose(
        boxes.pairwise_iou(moved, moved), boxes.pairwise_iou(a, a), atol=2e-3
    )
    np.testing.assert_allclose(np.diag(boxes.pairwise_iou(a, a)), 1, rtol=1e-5)


def test_encode_by_hand():
    anchor = np.array([[0, 0, 10, 20]], np.float32)  # centre (5, 10), size (10, 20)
    target = np.array([[5, 0, 25, 20]], np.float32)  # centre (15, 10), size (20, 20)
    expected = [[(15 - 5) / 10, 0, np.log(20 / 10), 0]]
    np.testing.assert_allclose(boxes.encode(target, anchor), expected, atol=1e-6)
    weighted = boxes.encode(target, anchor, (10.0, 10.0, 5.0, 5.0))
    np.testing.assert_allclose(weighted, [[10, 0, 5 * np.log(2), 0]], atol=1e-5)


@given(some_boxes, some_boxes)
def test_decode_undoes_encode(a, b):
    weights = (10.0, 10.0, 5.0, 5.0)
    decoded = boxes.decode(boxes.encode(a, b, weights), b, weights)
    np.testing.assert_allclose(decoded, a, atol=0.05, rtol=1e-4)


def test_wild_deltas_decode_to_finite_boxes():
    deltas = np.array([[0, 0, 1e4, 88]], np.float32)
    decoded = np.asarray(boxes.decode(deltas, np.array([[0, 0, 16, 16]], np.float32)))
    # log(1000 / 16): a side of 16 becomes 1000 at the most
    np.testing.assert_allclose(decoded, [[8 - 500, 8 - 500, 8 + 500, 8 + 500]], rtol=1e-5)


def test_frames_convert_there_and_back():
    xywh = np.array([[1.5, 2, 30, 4.25]])
    xyxy = boxes.coco_xywh_to_xyxy(xywh)
    np.testing.assert_array_equal(xyxy, [[1.5, 2, 31.5, 6.25]])
    np.testing.assert_array_equal(boxes.xyxy_to_coco_xywh(xyxy), xywh)


@given(
    st.integers(1, 4000), st.integers(1, 4000), st.lists(st.floats(0, 1), min_size=4, max_size=4)
)
def test_tfds_frame_gives_back_two_decimals(height, width, shares):
    x1, x2 = sorted(np.round(np.array(shares[:2]) * width, 2))
    y1, y2 = sorted(np.round(np.array(shares[2:]) * height, 2))
    stored = np.array([[y1 / height, x1 / width, y2 / height, x2 / width]]).astype(np.float32)
    np.testing.assert_allclose(
        boxes.tfds_yxyx_to_xyxy(stored, height, width), [[x1, y1, x2, y2]], atol=1e-9
    )


def test_clip_keeps_boxes_inside():
    wild = jnp.array([[-5.0, 3, 700, 900], [10, 20, 30, 40]])
    np.testing.assert_array_equal(boxes.clip(wild, 480, 640), [[0, 3, 640, 480], [10, 20, 30, 40]])
