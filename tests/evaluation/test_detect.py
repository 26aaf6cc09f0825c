"""The stream of detections: order, frames, fillers, streams without an end or a data set."""

import dataclasses
import functools
import itertools
import threading
import time

import jax
import numpy as np
import pytest

from retina_jax import parallel
from retina_jax.evaluation.detect import make_detect
from retina_jax.models import retinanet
from retina_jax.types import Batch, GroundTruth

pytestmark = pytest.mark.usefixtures("shallow")
IMAGES = 2


def initial(model):
    """Compiled: operation by operation it takes several times as long."""
    init = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))
    return init(np.zeros((1, 64, 64, 3), np.float32))


@pytest.fixture
def detect_and_variables(shallow):
    return detector()


@functools.cache
def detector(nms_device="host"):
    """Made, and compiled for, once: no test changes it."""
    from experiments.shapes import get_config

    config = get_config()
    config.model.width = 8
    config.model.fpn_channels = config.model.head_channels = 16
    config.model.head_convs = 1
    config.model.prior = 0.3
    config.eval.batch_size = IMAGES
    config.eval.max_detections = 7
    config.eval.nms_device = nms_device
    config.eval.cut_boxes = "after_nms"
    devices = parallel.Devices.local(1)
    model = retinanet.build(config, 5)
    variables = initial(model)
    return make_detect(model, config, devices), devices.replicate(variables)


def batch(first_row, scale=1.0, mask=(True, True), seed=0):
    rng = np.random.default_rng(seed)
    sizes = np.array([(64, 96), (48, 96)], np.int32)
    return Batch(
        images=rng.integers(0, 256, (IMAGES, 64, 96, 3), dtype=np.uint8),
        sizes=sizes,
        original_sizes=(sizes * scale).astype(np.int32),
        ground_truth=GroundTruth.empty(IMAGES, 0),
        index=np.arange(first_row, first_row + IMAGES, dtype=np.int32),
        example_mask=np.array(mask),
        cut_away=np.zeros(IMAGES, np.int32),
    )


def test_rows_come_in_the_batches_order_without_fillers(detect_and_variables):
    detect, variables = detect_and_variables
    batches = [batch(10), batch(4, mask=(True, False)), batch(0)]
    assert [row for row, _ in detect(variables, batches)] == [10, 11, 4, 0, 1]


def test_boxes_are_in_pixels_of_the_original(detect_and_variables):
    detect, variables = detect_and_variables
    (_, shown), _ = detect(variables, [batch(0)])
    (_, original), _ = detect(variables, [batch(0, scale=3)])
    assert len(shown.boxes) == 7
    np.testing.assert_allclose(original.boxes, 3 * shown.boxes, rtol=1e-12)
    np.testing.assert_array_equal(original.scores, shown.scores)
    assert (np.diff(shown.scores) <= 0).all()
    assert (shown.boxes <= [96, 64, 96, 64]).all()


def test_nms_on_the_device_gives_the_same(detect_and_variables):
    streams = (detector(place) for place in ("host", "device"))
    host, device = ([*detect(variables, [batch(0, 2.5)])] for detect, variables in streams)
    assert [row for row, _ in host] == [row for row, _ in device] == [0, 1]
    for (_, expected), (_, ours) in zip(host, device, strict=True):
        assert len(ours.scores) == 7
        np.testing.assert_array_equal(ours.labels, expected.labels)
        np.testing.assert_allclose(ours.scores, expected.scores, rtol=1e-6)
        np.testing.assert_allclose(ours.boxes, expected.boxes, atol=1e-4)


def test_a_stream_need_not_end(detect_and_variables):
    detect, variables = detect_and_variables
    asked = []

    def endless():
        for number in itertools.count():
            asked.append(number)
            yield batch(IMAGES * number, seed=number)

    stream = detect(variables, endless())
    rows = [row for row, _ in itertools.islice(stream, 5)]
    assert rows == list(range(5))
    assert len(asked) <= 8  # a few batches ahead, no more
    stream.close()


def test_a_closed_stream_leaves_no_thread(detect_and_variables):
    detect, variables = detect_and_variables
    before = set(threading.enumerate())
    stream = detect(variables, (batch(2 * n) for n in itertools.count()))
    next(stream)
    assert set(threading.enumerate()) - before
    stream.close()
    deadline = time.monotonic() + 30
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


def test_a_fault_in_the_batches_reaches_the_caller(detect_and_variables):
    detect, variables = detect_and_variables

    def broken():
        yield batch(0)
        yield batch(2)
        yield batch(4)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(detect(variables, broken()))


def test_the_evaluator_restores_the_rows_order_and_counts_every_row(tiny_config, two_aspects):
    from retina_jax.data.data_set import find_data_set, open_split
    from retina_jax.errors import EvaluationError
    from retina_jax.evaluation.evaluator import Evaluator

    config = tiny_config
    config.data.dir, config.data.name = str(two_aspects), ""
    config.data.short_side, config.data.long_side = 64, 96
    config.data.buckets = ((64, 96), (96, 64))
    config.eval.batch_size, config.eval.score_threshold = 2, 0.0
    split = open_split(find_data_set(two_aspects, ""), "validation")
    model = retinanet.build(config, 3)
    devices = parallel.Devices.local(1)
    variables = initial(model)
    evaluator = Evaluator(model, split, config, devices)
    calls = []
    results = evaluator.detect(devices.replicate(variables), lambda: calls.append(0))
    assert len(calls) == len(split)
    # landscape and portrait images alternate, so buckets are not the rows' order
    ids = list(dict.fromkeys(r["image_id"] for r in results))
    assert ids == split.image_ids.tolist()
    assert evaluator.detect(devices.replicate(variables), stops=lambda batch: True) is None
    lacking = dataclasses.replace(split, name="validation")
    object.__setattr__(evaluator, "_split", lacking)
    evaluator._loader = list(evaluator._loader)[1:]
    with pytest.raises(EvaluationError, match="evaluation saw 14 of the 16 images"):
        evaluator.detect(devices.replicate(variables))
