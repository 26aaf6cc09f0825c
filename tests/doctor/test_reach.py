"""By ATSS, a box is within reach if it gets a positive anchor; what the doctor says of others."""

from functools import partial

import jax
import numpy as np
import pytest
from made_data import examined, healthy, image_of, told

from retina_jax.doctor import report as pages
from retina_jax.doctor.anchor_recall import InputBoxes
from retina_jax.doctor.reach import reached
from retina_jax.models.retinanet import anchors_for
from retina_jax.ops.anchors import pyramid_grids
from retina_jax.ops.targets import assign_targets
from retina_jax.types import GroundTruth


@pytest.fixture
def by_atss(config):
    config.matching.kind = "atss"
    config.anchors.scale, config.anchors.octaves, config.anchors.ratios = 8.0, (0.0,), (1.0,)
    return config


def test_reach_is_what_training_matches(by_atss):
    """Each box alone on its image, in both buckets; some lie between the centres of anchors."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (24, 2))
    boxes = np.concatenate([corner, corner + 2 ** rng.uniform(0.5, 5, (24, 2))], axis=1)
    bucket = np.arange(24) % 2
    matched, nearly = reached(InputBoxes(boxes, bucket), np.zeros(24), by_atss)
    for number, size in enumerate(by_atss.data.buckets):
        anchors, grids = np.concatenate(anchors_for(by_atss, size)), pyramid_grids(size)
        own = boxes[bucket == number].astype(np.float32)[:, None]
        truth = GroundTruth.empty(len(own), 1).replace(
            boxes=own, valid=np.ones((len(own), 1), bool)
        )
        assign = jax.vmap(partial(assign_targets, anchors, grids=grids, kind="atss"))
        foreground = np.asarray(jax.jit(assign)(truth).foreground)
        np.testing.assert_array_equal(matched[bucket == number], foreground.any(axis=1))
        centre = (anchors[:, :2] + anchors[:, 2:]) / 2
        inside = ((centre > own[..., :2]) & (centre < own[..., 2:])).all(axis=2)
        np.testing.assert_array_equal(nearly[bucket == number], inside.any(axis=1))
    assert 0 < matched.sum() < 24


def test_the_report_speaks_of_atss(by_atss):
    """Boxes of 4 px, centred between the anchors, which have their centres at multiples of 8."""
    lost = [
        image_of(50 + i, [[8 * i + 10, 18, 8 * i + 14, 22], [8 * i + 10, 34, 8 * i + 14, 38]])
        for i in range(10)
    ]
    report = examined(by_atss, [*healthy(), *lost])
    small = [f.message for f in report.findings if f.check == "anchor_recall"]
    (message,) = (m for m in small if "small boxes" in m)
    assert message.startswith("train: 0 % of 20 small boxes (at the input) have a positive anchor")
    assert "(0 % have the centre of an anchor inside); boxes narrower than the stride" in message
    assert report.suggestion is None
    assert report.to_json()["matching"] == {"kind": "atss", "atss_candidates": 9}
    page = pages.page(report, {}, [])
    assert "Classes and their anchor recall, by ATSS" in page
    assert "<th>ATSS</th><th>centre inside</th>" in page


def test_without_any_centre_inside_it_is_an_error(by_atss):
    lost = [image_of(i, [[8 * i + 10, 18, 8 * i + 14, 22]]) for i in range(12)]
    message = told(examined(by_atss, lost).findings, "anchor_recall", "error")
    assert "only 0 % of 12 boxes have the centre of an anchor inside, so few can be" in message
