"""The predict step: pixels in, a fixed number of candidates out; by hand on known outputs."""

import numpy as np
import pytest

from retina_jax.config import default_config
from retina_jax.evaluation.predict_step import make_predict_step
from retina_jax.models.retinanet import anchors_for
from retina_jax.types import Predictions

SIZE, CLASSES = (64, 96), 3


class Known:
    """A network of known outputs: every logit is -9 but those that are set."""

    def __init__(self, config, classes=CLASSES, values=4):
        self.anchors = anchors_for(config, SIZE)
        self.logits = [np.full((1, len(a), classes), -9.0, np.float32) for a in self.anchors]
        self.deltas = [np.zeros((1, len(a), 1, values), np.float32) for a in self.anchors]
        self.seen = None

    def apply(self, variables, images, train):
        assert variables == "weights"
        assert not train
        self.seen = np.asarray(images)
        return Predictions(self.logits, self.deltas)


@pytest.fixture
def config():
    config = default_config()
    config.eval.top_k = 50
    return config


def nearest(model, box, level=0):
    """Row of the anchor of a level, the first by default, that is most like a box."""
    return int(np.argmin(np.abs(model.anchors[level] - box).sum(-1)))


def predict(model, config, size=SIZE):
    images = np.full((1, *SIZE, 3), 128, np.uint8)
    found = make_predict_step(model, config)("weights", images, np.array([size], np.int32))
    return tuple(np.asarray(part)[0] for part in (found.boxes, found.scores, found.labels))


def test_a_confident_anchor_is_decoded_with_its_score_and_label(config):
    model = Known(config)
    anchor = nearest(model, [24, 16, 56, 48])
    model.logits[0][0, anchor, 2] = 1.0
    model.deltas[0][0, anchor, 0] = (0.5, -0.25, np.log(0.5), 0)
    x1, y1, x2, y2 = model.anchors[0][anchor]
    width, height = x2 - x1, y2 - y1
    x, y = (x1 + x2) / 2 + 0.5 * width, (y1 + y2) / 2 - 0.25 * height
    expected = [x - width / 4, y - height / 2, x + width / 4, y + height / 2]
    assert min(expected) > 0, "the picture cuts nothing off"
    boxes, scores, labels = predict(model, config)
    (place,) = np.flatnonzero(scores)
    assert scores[place] == pytest.approx(1 / (1 + np.exp(-1)), rel=1e-5)
    assert labels[place] == 2
    np.testing.assert_allclose(boxes[place], expected, rtol=1e-4)


@pytest.mark.parametrize(("level", "stride"), [(0, 8), (2, 32)])
def test_a_distribution_is_decoded_to_its_mean_in_strides(config, level, stride):
    config.loss.update({"classification": "qfl", "box": "dfl", "dfl_bins": 4})
    config.eval.cut_boxes = "after_nms"
    model = Known(config, values=4 * 5)
    anchor = nearest(model, [16, 16, 48, 48], level)
    model.logits[level][0, anchor, 1] = 2.0
    sides = np.full((4, 5), -30.0)
    sides[0, [0, 1]] = 0  # left: 0 or 1
    sides[1, 1] = sides[3, 0] = 0
    sides[2, [0, 1]] = np.log(0.25), np.log(0.75)
    model.deltas[level][0, anchor, 0] = sides.ravel()
    x, y = (model.anchors[level][anchor][:2] + model.anchors[level][anchor][2:]) / 2
    boxes, scores, labels = predict(model, config)
    (place,) = np.flatnonzero(scores)
    assert labels[place] == 1
    assert scores[place] == pytest.approx(1 / (1 + np.exp(-2)), rel=1e-5)  # nothing multiplies it
    expected = [x - 0.5 * stride, y - stride, x + 0.75 * stride, y]
    np.testing.assert_allclose(boxes[place], expected, rtol=1e-5, atol=1e-4)


def test_there_are_as_many_places_whatever_is_found(config):
    model = Known(config)
    places = sum(min(50, len(anchors) * CLASSES) for anchors in model.anchors)
    for _ in range(2):
        boxes, scores, labels = predict(model, config)
        assert (len(boxes), len(scores), len(labels)) == (places,) * 3
        assert (scores > 0).sum() == (0 if model.logits[0].max() < 0 else 50)
        model.logits[0][:] = 2.0


@pytest.mark.parametrize("cut", ["before_nms", "after_nms"])
def test_boxes_are_cut_to_the_picture_or_left_to_be_cut_later(config, cut):
    config.eval.cut_boxes = cut
    model = Known(config)
    anchor = nearest(model, [34, 14, 66, 46])
    model.logits[0][0, anchor, 0] = 3.0
    x1, _, x2, _ = model.anchors[0][anchor]
    boxes, scores, _ = predict(model, config, size=(64, 40))
    assert x2 > 40 > x1
    assert boxes[scores > 0][0, 2] == pytest.approx(40 if cut == "before_nms" else x2)


def test_a_softmaxs_last_class_is_background(config):
    config.loss.classification = "softmax_focal"
    model = Known(config, CLASSES + 1)
    model.logits[0][0, 7, CLASSES] = 9.0  # sure of background
    model.logits[0][0, 8, 1] = 9.0
    config.eval.score_threshold = 0.5
    _, scores, labels = predict(model, config)
    assert labels[scores > 0].tolist() == [1]


def test_the_network_sees_normalised_pixels_and_black_padding(config):
    model = Known(config)
    predict(model, config, size=(48, 80))
    inside = (128 - np.array(config.data.mean)) / config.data.std
    np.testing.assert_allclose(model.seen[0, :48, :80], np.broadcast_to(inside, (48, 80, 3)),
                               rtol=1e-5)  # fmt: skip
    assert not model.seen[0, 48:].any()
    assert not model.seen[0, :, 80:].any()
