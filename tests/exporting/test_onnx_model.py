"""ONNX: every network of the config converts, and onnxruntime finds what JAX finds."""

import dataclasses

import jax
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from experiments.shapes import get_config
from retina_jax.config.backbones import BACKBONES
from retina_jax.errors import UserError
from retina_jax.evaluation.predict_step import make_detection_step
from retina_jax.exporting import onnx_model, onnx_primitives
from retina_jax.exporting.agreement import compare, noise, run_program
from retina_jax.exporting.speed import untrained

BUCKET, CLASSES = (64, 96), 5
PLAIN = {"model.p6_from": "P5", "model.norm": "frozen", "data.float_pixels": True}
MOBILE = {
    "model.backbone": "mobilenet_v2", "model.width": 16,
    "loss.classification": "qfl", "loss.box": "dfl", "loss.dfl_bins": 4,
}  # fmt: skip
OTHER = {
    "model.backbone": "resnext50_32x4d", "model.norm": "group", "model.stride_in_1x1": True,
    "model.head_norm": "batch", "model.class_specific_boxes": True, "model.remat": True,
    "model.centerness": True, "model.box_scale_per_level": True,
    "loss.classification": "softmax_focal", "data.pixel_order": "BGR",
    "eval.cut_boxes": "after_nms", "eval.max_detections": 700,
}  # fmt: skip


@pytest.fixture
def one_block(monkeypatch, shallow):
    """ResNeXt and MobileNetV2 with one block a stage, too."""
    mobile = BACKBONES["mobilenet_v2"]
    stages = tuple(((stage[-1][0], 1),) for stage in mobile.stages)
    monkeypatch.setitem(BACKBONES, "mobilenet_v2", dataclasses.replace(mobile, stages=stages))
    kind = dataclasses.replace(BACKBONES["resnext50_32x4d"], blocks=(1, 1, 1, 1))
    monkeypatch.setitem(BACKBONES, "resnext50_32x4d", kind)


def made(**fields):
    """Random weights, with statistics of norms other than 0 and 1."""
    config = get_config()
    config.data.buckets = (BUCKET,)
    config.model.width = 8
    config.model.fpn_channels = config.model.head_channels = 16
    config.model.head_convs = 1
    config.model.prior = 0.3
    config.model.predictor_std = 0.2
    config.eval.top_k = 100
    config.update_from_flattened_dict(fields)
    network = untrained(config, CLASSES)
    rng = np.random.default_rng(0)
    network.variables["batch_stats"] = jax.tree.map(
        lambda x: x + rng.uniform(0, 0.3, x.shape).astype(np.float32),
        network.variables["batch_stats"],
    )
    return network


@pytest.mark.parametrize(
    ("fields", "at_once"),
    [(PLAIN, 0), (OTHER, 3), (MOBILE, 2)],
    ids=["any batch", "batches of 3", "depthwise convolutions and distributions"],
)
def test_onnxruntime_finds_what_jax_finds(one_block, tmp_path, fields, at_once):
    network = made(**fields)
    config, path = network.config, tmp_path / "model.onnx"
    onnx_model.write(network, BUCKET, at_once, path)
    batch = noise(BUCKET, np.float32 if config.data.float_pixels else np.uint8)
    step = jax.jit(make_detection_step(network.model, config))

    def ours(images, sizes):
        found = step(network.variables, images, sizes)
        return {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}

    theirs = onnx_model.load(path)
    found = [[*run_program(ours, batch, 4)], [*run_program(theirs, batch, at_once)]]
    result = compare(*found, config.eval.nms_iou, config.eval.score_threshold, 1e-3)
    assert result.detections > 100
    assert result.undecided >= 0
    assert result.pixels < 0.02
    assert result.score < 1e-4


def test_a_primitive_without_a_rule_is_refused_in_one_line(one_block, tmp_path, monkeypatch):
    monkeypatch.delitem(onnx_primitives.RULES, "logistic")
    with pytest.raises(UserError, match=r"has no rule for logistic, .*; use --format=stablehlo"):
        onnx_model.write(made(), BUCKET, 1, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
