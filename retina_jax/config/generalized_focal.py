"""Fields that exclude each other with ``loss.classification=qfl`` and ``loss.box=dfl``."""

from __future__ import annotations

import math

import ml_collections


def conflict(config: ml_collections.ConfigDict) -> tuple[str, object, str, object] | None:
    """Name, value, rule and fix of the first field that excludes these losses; None without any."""
    loss, model = config.loss, config.model
    if loss.classification == "qfl" and model.centerness:
        rule = (
            "is not available with loss.classification=qfl, whose scores already express the "
            "quality of a box and weight its losses"
        )
        return "model.centerness", True, rule, False
    if loss.box != "dfl":
        return None
    if model.class_specific_boxes:
        rule = "is not available with loss.box=dfl, which predicts one box for all classes"
        return "model.class_specific_boxes", True, rule, False
    half = _longest_side(config.anchors) / 2
    if half > loss.dfl_bins:
        rule = (
            f"cannot express the longest anchor, whose sides are {half:.1f} strides from its "
            "centre, let alone a larger box"
        )
        return "loss.dfl_bins", loss.dfl_bins, rule, max(16, math.ceil(2 * half))
    return None


def _longest_side(anchors: ml_collections.ConfigDict) -> float:
    """Of the anchors of a level, in its strides."""
    stretch = max(max(ratio, 1 / ratio) ** 0.5 for ratio in anchors.ratios)
    return anchors.scale * 2 ** max(anchors.octaves) * stretch
