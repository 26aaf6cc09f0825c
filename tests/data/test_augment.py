"""Augmentation: boxes go where their pixels go; what is cut away is known; draws are fixed."""

import colorsys
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.data.augment import View, draw_view, jitter_colors, move_boxes, show
from retina_jax.data.data_set import open_split
from retina_jax.data.loader import TrainLoader
from retina_jax.data.transforms import turn, turn_boxes
from retina_jax.prepare.shapes import open_data_set

BUCKET = (96, 128)


def random_view(rng):
    original = tuple(int(v) for v in rng.integers(40, 200, 2))
    sides = tuple(int(v) for v in rng.integers(48, 97, 3))
    scale_range = (1.0, 1.0) if rng.random() < 0.3 else (0.4, 2.0)
    quarters, mirrored = int(rng.integers(4)), bool(rng.random() < 0.5)
    view = draw_view(rng, original, BUCKET, sides, 128, scale_range, quarters=quarters)
    return original, dataclasses.replace(view, mirrored=mirrored)


@given(st.integers(0, 2**32 - 1))
def test_drawing_then_transforming_is_transforming_then_drawing(seed):
    rng = np.random.default_rng(seed)
    original, view = random_view(rng)
    corner = rng.uniform(0, 0.6, 2) * original[::-1]
    box = np.concatenate([corner, corner + (0.2 + 0.2 * rng.random(2)) * original[::-1]]).round()
    x1, y1, x2, y2 = box.astype(int)
    picture = np.zeros((*original, 3), np.uint8)
    picture[y1:y2, x1:x2] = 255
    out = np.zeros((*BUCKET, 3), np.uint8)
    shown = show(picture, view, False, out)
    assert shown.shape[:2] == view.window
    assert not out[view.window[0] :].any()
    assert not out[:, view.window[1] :].any()
    (moved,), (kept,) = move_boxes(box[None], original, view, 0.0)
    painted = np.zeros(view.window)
    ys, xs = np.mgrid[: view.window[0], : view.window[1]] + 0.5
    painted[(xs > moved[0]) & (xs < moved[2]) & (ys > moved[1]) & (ys < moved[3])] = 255
    # pixels whose centre is a pixel or more from the box's edge (of the scaled picture) agree
    edge = 1 + max(np.divide(view.size, view.turned(original))) / 2
    clear = np.ones(view.window, bool)
    for line, at in ((moved[[0, 2]], xs), (moved[[1, 3]], ys)):
        for value in line:
            clear &= np.abs(at - value) > edge
    np.testing.assert_array_equal((shown[..., 0] > 127)[clear], (painted > 127)[clear])
    assert kept == (moved[2:] > moved[:2]).all()


@given(st.integers(0, 2**32 - 1))
def test_views_lie_in_their_picture_and_bucket(seed):
    _, view = random_view(np.random.default_rng(seed))
    for side, first, shown, most in zip(view.size, view.corner, view.window, BUCKET, strict=True):
        assert 0 <= first <= side - shown
        assert 1 <= shown <= most
        assert shown == min(side, most)  # nothing is cut that would fit


sizes = st.integers(1, 40)


@given(sizes, sizes, st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_a_turned_box_covers_the_turned_pixels(height, width, quarters, seed):
    rng = np.random.default_rng(seed)
    (x1, x2), (y1, y2) = (np.sort(rng.integers(0, side + 1, 2)) for side in (width, height))
    picture = np.zeros((height, width, 3), np.uint8)
    picture[y1:y2, x1:x2] = 1
    turned = turn(picture, quarters)
    np.testing.assert_array_equal(turned, np.rot90(picture, quarters))
    box = np.array([[x1, y1, x2, y2]], np.float64)
    ((a, b, c, d),) = turn_boxes(box, (height, width), quarters).astype(int)
    expected = np.zeros_like(turned)
    expected[b:d, a:c] = 1
    np.testing.assert_array_equal(turned, expected)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turns_return_after_four_quarters(quarters):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    boxes = np.sort(rng.uniform(0, 5, (20, 2, 2)), axis=1).reshape(20, 4)
    image, moved = picture, boxes
    for _ in range(4):
        moved = turn_boxes(moved, image.shape[:2], quarters)
        image = turn(image, quarters)
        assert (moved[:, 2:] >= moved[:, :2]).all()
    np.testing.assert_array_equal(image, picture)
    np.testing.assert_allclose(moved, boxes, atol=1e-12)


def test_a_quarter_turn_and_back_and_three_quarters_agree():
    boxes = np.array([[1.0, 2, 4, 3]])  # of an image of 5 rows and 7 columns
    np.testing.assert_array_equal(turn_boxes(boxes, (5, 7), 1), [[2, 3, 3, 6]])
    np.testing.assert_array_equal(turn_boxes(boxes, (5, 7), 2), [[3, 2, 6, 3]])
    np.testing.assert_array_equal(turn_boxes(boxes, (5, 7), 3), [[2, 1, 3, 4]])
    np.testing.assert_array_equal(turn_boxes(boxes, (5, 7), 0), boxes)


def test_short_sides_are_drawn_alike_and_the_long_side_rules():
    rng = np.random.default_rng(0)
    sides = (640, 672, 704, 736, 768, 800)
    drawn = [draw_view(rng, (480, 640), (800, 1344), sides, 1333, (1.0, 1.0)).size[0]
             for _ in range(3000)]  # fmt: skip
    counts = np.unique(drawn, return_counts=True)
    assert tuple(counts[0]) == sides
    assert counts[1].min() > 400
    # 1000 × 300: 640 already passes 1333 on the long side, so every draw is the same
    wide = {draw_view(rng, (300, 1000), (800, 1344), sides, 1333, (1.0, 1.0)).size
            for _ in range(20)}  # fmt: skip
    assert wide == {(400, 1333)}


def test_boxes_go_by_the_share_that_remains():
    view = View((100, 100), (0, 50), (100, 50))
    boxes = np.array([[0, 0, 40, 10], [40, 0, 60, 10], [45, 0, 60, 10], [60, 5, 80, 20.0]])
    moved, kept = move_boxes(boxes, (100, 100), view, 0.0)
    assert kept.tolist() == [False, True, True, True]  # the first is gone: no area at all
    np.testing.assert_array_equal(moved[1], [0, 0, 10, 10])
    np.testing.assert_array_equal(moved[3], [10, 5, 30, 20])
    assert move_boxes(boxes, (100, 100), view, 0.5)[1].tolist() == [False, True, True, True]
    assert move_boxes(boxes, (100, 100), view, 0.6)[1].tolist() == [False, False, True, True]
    assert move_boxes(boxes, (100, 100), view, 1.0)[1].tolist() == [False, False, False, True]


def test_hue_turns_as_colorsys_says_and_grey_stays():
    picture = np.array([[[200, 30, 90], [128, 128, 128]]], np.uint8)
    rng = np.random.default_rng(3)
    turned = jitter_colors(rng, picture, (0.0, 0.0, 0.0, 0.5))[0]
    assert abs(turned[1].astype(int) - 128).max() <= 1
    hue, lightness, saturation = colorsys.rgb_to_hls(*picture[0, 0] / 255)
    found = colorsys.rgb_to_hls(*turned[0] / 255)
    assert abs(found[0] - hue) > 0.01
    np.testing.assert_allclose(found[1:], (lightness, saturation), atol=0.03)


@pytest.mark.parametrize("kind", range(4))
def test_each_colour_change_is_off_at_0_and_within_its_strength(kind):
    picture = np.random.default_rng(0).integers(60, 160, (8, 9, 3)).astype(np.uint8)
    strengths = [0.0] * 4
    off = jitter_colors(np.random.default_rng(1), picture, tuple(strengths))
    np.testing.assert_array_equal(off, picture)
    strengths[kind] = 0.3
    means = [jitter_colors(np.random.default_rng(s), picture, tuple(strengths)).mean()
             for s in range(40)]  # fmt: skip
    low, high = (0.7, 1.3) if kind == 0 else (0.9, 1.1)
    assert low * picture.mean() - 1 < min(means) < max(means) < high * picture.mean() + 1


def augmented(config):
    config.data.turn = True
    config.data.train_short_sides = (96, 128)
    config.data.scale_range = (0.5, 2.0)
    config.data.min_visible = 0.3
    config.data.color_jitter = (0.4, 0.4, 0.4, 0.1)
    return config


def test_every_draw_is_a_function_of_seed_epoch_and_row(tiny_config):
    config = augmented(tiny_config)
    split = open_split(open_data_set(config.data.dir, "shapes"), "train")
    loader = TrainLoader(split, config)
    whole = list(loader.batches(0, 6))
    for expected, batch in zip(whole[3:], loader.batches(3, 6), strict=True):
        np.testing.assert_array_equal(batch.images, expected.images)
        np.testing.assert_array_equal(batch.ground_truth.boxes, expected.ground_truth.boxes)
    # the same picture in the next epoch is another view
    seen = {}
    for batch in whole:
        for image, row in zip(batch.images, batch.index, strict=True):
            assert not np.array_equal(seen.get(int(row)), image)
            seen[int(row)] = image


def test_turned_images_fit_their_bucket_with_all_their_boxes(two_aspects):
    from experiments.custom import get_config

    config = get_config("paper")
    config.data.dir = str(two_aspects)
    config.data.buckets = ((96, 128), (128, 96))
    config.data.turn, config.data.flip = True, False
    split = open_split(open_data_set(str(two_aspects), ""), "train")
    turned, whole, areas = 0, 0, []
    for batch in TrainLoader(split, config).batches(0, 12):
        rows, truth = batch.index, batch.ground_truth
        sideways = (batch.original_sizes != split.sizes[rows]).any(1)
        np.testing.assert_array_equal(
            np.where(sideways[:, None], split.sizes[rows][:, ::-1], split.sizes[rows]),
            batch.original_sizes,
        )
        turned, whole = turned + sideways.sum(), whole + len(rows)
        # no pixel of an image is lost, and the aspect is that of the turned image
        scale = batch.sizes / batch.original_sizes
        np.testing.assert_allclose(scale[:, 0], scale[:, 1], rtol=0.02)
        assert (batch.sizes == batch.images.shape[1:3]).any(1).all()
        assert not batch.cut_away.any()
        for i, row in enumerate(rows):
            example = split[int(row)]
            boxes = truth.boxes[i][truth.valid[i]] / scale[i].mean()
            areas.append(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
            expected = np.prod(example.boxes[:, 2:] - example.boxes[:, :2], axis=1)
            np.testing.assert_allclose(areas[-1], expected, rtol=0.1)
            np.testing.assert_array_equal(truth.is_crowd[i][truth.valid[i]], example.is_crowd)
    assert 0.35 < turned / whole < 0.65


def test_boxes_that_are_cut_away_are_counted(tiny_config):
    config = augmented(tiny_config)
    split = open_split(open_data_set(config.data.dir, "shapes"), "train")
    total = crowds = 0
    for batch in TrainLoader(split, config).batches(0, 9):
        there = batch.ground_truth.valid.sum(1)
        np.testing.assert_array_equal(there + batch.cut_away, split.box_counts[batch.index])
        total += batch.cut_away.sum()
        boxes = batch.ground_truth.boxes[batch.ground_truth.valid]
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.min() >= 0
        for i, row in enumerate(batch.index):  # labels and crowds stay with their boxes
            kept = {
                (label, crowd)
                for label, crowd, valid in zip(
                    batch.ground_truth.labels[i].tolist(),
                    batch.ground_truth.is_crowd[i].tolist(),
                    batch.ground_truth.valid[i],
                    strict=True,
                )
                if valid
            }
            example = split[int(row)]
            assert kept <= set(zip(example.labels.tolist(), example.is_crowd.tolist(), strict=True))
            crowds += sum(crowd for _, crowd in kept)
    assert total > 0
    assert crowds > 0
