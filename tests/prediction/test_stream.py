"""Pictures in, detections out: the pixels of evaluation, in order, a few batches ahead."""

import itertools
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.config import default_config
from retina_jax.data.images import PictureError
from retina_jax.data.plan import place
from retina_jax.errors import UserError
from retina_jax.prediction import network as module
from retina_jax.prediction.batches import Window, make_batches
from retina_jax.prediction.network import Network
from retina_jax.prediction.pictures import Picture
from retina_jax.prediction.stream import Predictor
from retina_jax.prediction.tiles import Tiling
from retina_jax.training.workdir import Classes
from retina_jax.types import Detections

BUCKETS = ((64, 96), (96, 64))


def windows(shapes):
    for number, (height, width) in enumerate(shapes):
        placed = place(height, width, BUCKETS, 64, 96)
        pixels = np.full((placed.height, placed.width, 3), number + 1, np.uint8)
        yield Window(number, placed, (height, width), pixels)


@given(st.lists(st.sampled_from([(60, 90), (90, 60), (30, 90)]), max_size=60), st.integers(1, 4))
def test_every_window_is_in_one_batch_of_its_bucket(shapes, size):
    rows = []
    for batch in make_batches(windows(shapes), BUCKETS, size):
        assert batch.images.shape[0] == size
        assert batch.images.shape[1:3] in BUCKETS
        np.testing.assert_array_equal(batch.index >= 0, batch.example_mask)
        for i in np.flatnonzero(batch.example_mask):
            number, (height, width) = batch.index[i], batch.sizes[i]
            assert (batch.images[i, :height, :width] == number + 1).all()
            assert batch.images[i].sum() == 3 * height * width * (number + 1)
            assert tuple(batch.original_sizes[i]) == shapes[number]
            rows.append(number)
        assert not batch.images[~batch.example_mask].any()
    assert sorted(rows) == list(range(len(shapes)))


def test_a_rare_shape_does_not_wait_for_the_end():
    shapes = itertools.chain([(90, 60)], itertools.repeat((60, 90)))
    batches = make_batches(windows(shapes), BUCKETS, 4)
    first = next(i for i, batch in enumerate(batches) if 0 in batch.index)
    assert first <= 4


@pytest.fixture
def predictor(monkeypatch):
    """Makes predictors whose network finds the whole window, scored by its mean grey."""
    seen = types.SimpleNamespace(batches=[])

    def make_detect(model, config, devices):
        def detect(variables, batches):
            for batch in batches:
                seen.batches.append(batch)
                for i in np.flatnonzero(batch.example_mask):
                    height, width = batch.original_sizes[i]
                    shown = batch.images[i, : batch.sizes[i][0], : batch.sizes[i][1]]
                    yield (
                        int(batch.index[i]),
                        Detections(
                            boxes=np.array([[0.0, 0.0, width, height]]),
                            scores=np.array([shown.mean() / 255], np.float32),
                            labels=np.array([0]),
                        ),
                    )

        return detect

    monkeypatch.setattr(module, "make_detect", make_detect)

    def make(batch_size=2, tiling=None, pixel_scale=None, **fields):
        config = default_config()
        config.data.short_side, config.data.long_side = 64, 96
        config.data.buckets = BUCKETS
        config.update_from_flattened_dict(fields)
        network = Network(config.lock(), Classes(("a",), (1,)), {}, pixel_scale, "made here")
        return Predictor(network, batch_size, None, tiling)

    make.seen = seen
    return make


def grey(number, height, width):
    return Picture(f"{number}", np.full((height, width, 3), number, np.uint8))


def test_results_come_in_order_whatever_their_shapes(predictor, tmp_path):
    shapes = [(60, 90), (90, 60), (30, 200), (90, 60), (60, 90), (200, 30), (90, 60)] * 5
    pictures = [grey(n, *shape) for n, shape in enumerate(shapes)]
    pictures[3] = Picture("3", tmp_path / "none.jpg")
    pictures[-1] = Picture("34", tmp_path / "none.jpg")
    for size in (1, 2, 8):
        found = list(predictor(size).stream(pictures))
        assert [picture.name for picture, _ in found] == [str(n) for n in range(35)]
        for n, (_, outcome) in enumerate(found):
            if n in (3, 34):
                assert isinstance(outcome, PictureError)
                continue
            assert outcome.size == shapes[n]
            assert outcome.scores[0] == pytest.approx(n / 255, abs=1e-6)
            height, width = shapes[n]
            assert outcome.boxes.tolist() == [[0, 0, width, height]]


def test_only_unreadable_pictures_end_too(predictor, tmp_path):
    found = list(predictor().stream([Picture("x", tmp_path / "none")] * 3))
    assert [str(outcome) for _, outcome in found] == [
        "cannot be read: No such file or directory"
    ] * 3
    assert list(predictor().stream([])) == []


def test_an_error_of_the_pictures_reaches_the_caller(predictor):
    def broken():
        yield grey(1, 60, 90)
        raise RuntimeError("the camera is gone")

    with pytest.raises(RuntimeError, match="the camera is gone"):
        list(predictor().stream(broken()))


@pytest.mark.parametrize(
    "fields",
    [{}, {"data.rounding": "floor", "data.antialias": True}, {"data.float_pixels": True}],
)
def test_the_pixels_are_those_of_the_loader_of_evaluation(predictor, two_aspects, fields):
    from retina_jax.data.data_set import find_data_set, open_split
    from retina_jax.data.loader import EvaluationLoader

    split = open_split(find_data_set(two_aspects, ""), "validation")
    made = predictor(4, **fields)
    files = [two_aspects.parent / "images" / str(name) for name in split.file_names]
    list(made.stream(Picture(str(row), path) for row, path in enumerate(files)))
    ours = _by_row(predictor.seen.batches)
    theirs = _by_row(EvaluationLoader(split, made.config))
    assert ours.keys() == theirs.keys() == set(range(len(split)))
    for row, (pixels, *sizes) in theirs.items():
        np.testing.assert_array_equal(ours[row][0], pixels)
        np.testing.assert_array_equal(ours[row][1:], sizes)


def _by_row(batches):
    return {
        int(batch.index[i]): (batch.images[i], batch.sizes[i], batch.original_sizes[i])
        for batch in batches
        for i in np.flatnonzero(batch.example_mask)
    }


def test_tiles_are_merged_in_pixels_of_the_picture(predictor):
    made = predictor(2, Tiling(50, 0.0))
    pictures = [grey(9, 40, 50), grey(20, 100, 150), grey(30, 40, 50)]
    small, large, last = (outcome for _, outcome in made.stream(pictures))
    assert small.boxes.tolist() == last.boxes.tolist() == [[0, 0, 50, 40]]
    assert large.size == (100, 150)
    corners = sorted(map(tuple, large.boxes.tolist()))
    assert corners == sorted(
        (x, y, x + 50, y + 50) for x in (0.0, 50.0, 100.0) for y in (0.0, 50.0)
    )


def test_where_one_tile_is_enough_nothing_changes(predictor):
    rng = np.random.default_rng(0)
    pictures = [Picture(f"{n}", rng.integers(0, 256, (60, 90, 3), np.uint8)) for n in range(5)]
    plain, tiled = (list(predictor(2, t).stream(pictures)) for t in (None, Tiling(90)))
    for (_, one), (_, other) in zip(plain, tiled, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_a_stream_without_an_end_is_read_a_few_batches_ahead(predictor):
    asked = itertools.count()
    stream = predictor(2).stream(grey(next(asked) % 200, 60, 90) for _ in itertools.count())
    for _ in range(50):
        next(stream)
    stream.close()
    assert next(asked) < 50 + 2 * 2 * 16 + 8


@pytest.mark.parametrize(("size", "shared"), [(1, 1), (6, 6), (8, 8), (9, 3), (16, 8)])
def test_the_devices_share_a_batch_as_far_as_it_can_be_shared(predictor, size, shared, monkeypatch):
    used = []
    make = lambda model, config, devices: used.append(devices) or print  # noqa: E731
    monkeypatch.setattr(module, "make_detect", make)
    predictor(size)
    assert len(used[0]) == shared


def test_a_batch_of_nothing_is_refused(predictor):
    with pytest.raises(UserError, match="--batch-size=0 must be 1 or more"):
        predictor(0)


def test_nms_of_the_run_can_be_overridden(predictor):
    network = predictor().network
    made = Predictor(network, nms="soft", class_agnostic=True)
    assert (made.config.eval.nms, made.config.eval.class_agnostic) == ("soft", True)
    assert (network.config.eval.nms, network.config.eval.class_agnostic) == ("hard", False)
    with pytest.raises(UserError, match=r"config.eval.nms='gentle' must be one of hard, soft"):
        Predictor(network, nms="gentle")
