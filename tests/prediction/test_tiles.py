"""Tiles cover a picture; merged detections are those of the whole where one tile is enough."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.errors import UserError
from retina_jax.evaluation.nms import Rule
from retina_jax.prediction.tiles import Tile, Tiling, merge
from retina_jax.types import Detections

RULE = Rule(0.5, 100)


def found(*rows):
    """Detections of rows (x1, y1, x2, y2, score, label)."""
    values = np.array(rows, float).reshape(-1, 6)
    return Detections(
        boxes=values[:, :4], scores=values[:, 4].astype(np.float32), labels=values[:, 5].astype(int)
    )


@given(st.integers(32, 300), st.floats(0, 0.9), st.integers(1, 2000), st.integers(1, 2000))
def test_tiles_cover_the_picture_and_overlap(side, overlap, height, width):
    tiles = Tiling(side, overlap).tiles(height, width)
    for length, starts, own in (
        (height, sorted({t.top for t in tiles}), tiles[0].height),
        (width, sorted({t.left for t in tiles}), tiles[0].width),
    ):
        assert own == min(side, length)
        assert starts[0] == 0
        assert starts[-1] + own == length
        steps = np.diff(starts)
        assert (steps <= np.ceil(side * (1 - overlap)) + 1).all()
    assert len(tiles) == len({(t.top, t.left) for t in tiles})


def test_one_tile_is_the_picture_itself():
    assert Tiling(800).tiles(600, 800) == [Tile(0, 0, 600, 800)]
    part = found((1, 2, 3, 4, 0.9, 0), (1, 2, 3, 4, 0.8, 0))
    assert merge([Tile(0, 0, 600, 800)], [part], (600, 800), RULE) is part


def test_what_two_tiles_saw_is_one_detection():
    tiles = Tiling(100, 0.5).tiles(100, 150)
    assert [t.left for t in tiles] == [0, 50]
    left = found((60, 20, 80, 40, 0.7, 0), (60, 60, 80, 80, 0.6, 1))
    right = found((11, 20, 30, 40, 0.9, 0), (10, 60, 30, 80, 0.6, 0))
    both = merge(tiles, [left, right], (100, 150), RULE)
    assert both.boxes.tolist() == [[61, 20, 80, 40], [60, 60, 80, 80], [60, 60, 80, 80]]
    assert both.scores.tolist() == pytest.approx([0.9, 0.6, 0.6])
    assert both.labels.tolist() == [0, 1, 0]
    agnostic = merge(tiles, [left, right], (100, 150), Rule(0.5, 100, agnostic=True))
    assert len(agnostic.scores) == 2


def test_boxes_of_one_tile_do_not_drop_each_other():
    tiles = Tiling(100, 0.5).tiles(100, 150)
    soft = found((60, 20, 80, 40, 0.7, 0), (60, 20, 80, 41, 0.1, 0))
    assert len(merge(tiles, [soft, found()], (100, 150), RULE).scores) == 2


def test_a_cut_object_gives_way_to_the_whole_one():
    tiles = Tiling(100, 0.5).tiles(100, 150)
    # from x = 85 to 140: the left tile sees 15 of its 55 pixels, an IoU of 0.27
    left, right = found((85, 20, 100, 60, 0.6, 0)), found((35, 20, 90, 60, 0.8, 0))
    both = merge(tiles, [left, right], (100, 150), RULE)
    assert both.boxes.tolist() == [[85, 20, 140, 60]]
    surer = found((85, 20, 100, 60, 0.9, 0))
    assert len(merge(tiles, [surer, right], (100, 150), RULE).scores) == 2
    # at the edge of the picture nothing is cut
    outer = found((0, 20, 15, 60, 0.6, 0), (0, 20, 55, 60, 0.8, 0))
    assert len(merge(tiles, [outer, found()], (100, 150), RULE).scores) == 2


def test_no_limit_for_the_picture():
    tiles = Tiling(100, 0.0).tiles(100, 200)
    part = found(*[(i, 3, i + 1, 4, 0.5, 0) for i in range(4, 64)])
    assert len(merge(tiles, [part, part], (100, 200), Rule(0.5, 60)).scores) == 120


@pytest.mark.parametrize(
    ("side", "overlap", "message"),
    [(8, 0.2, "--tile=8 must be 32 pixels or more"), (800, 1.0, "--overlap=1.0 must be 0 or more")],
)
def test_tiles_that_make_no_sense_are_refused(side, overlap, message):
    with pytest.raises(UserError, match=message):
        Tiling(side, overlap)
