"""A wrong shape raises in every pure module: conftest's import hook reaches all that it names."""

import importlib

import jaxtyping
import numpy as np
import pytest
from support import PURE

BOXES, FLAT = np.zeros((3, 4), np.float32), np.zeros(3, np.float32)
WRONG = {
    "retina_jax.ops.anchors": ("grid_anchors", (FLAT, (1, 1), (8, 8), 0.0)),
    "retina_jax.ops.atss": ("atss_candidates", (FLAT, BOXES, [(1, 3)])),
    "retina_jax.ops.boxes": ("pairwise_iou", (FLAT, BOXES)),
    "retina_jax.ops.centerness": ("centerness", (BOXES, FLAT)),
    "retina_jax.ops.box_losses": ("giou_loss", (BOXES, FLAT)),
    "retina_jax.ops.distribution": ("distribution_focal_loss", (BOXES, BOXES)),
    "retina_jax.ops.losses": ("sigmoid_cross_entropy", (BOXES, np.zeros((2,), np.int32))),
    "retina_jax.ops.matching": ("match_iou", (BOXES, np.ones(3, bool))),
    "retina_jax.ops.nms": ("_area", (FLAT, BOXES)),
    "retina_jax.ops.postprocess": ("class_scores", (np.zeros((3, 2), np.int32), False)),
    "retina_jax.ops.targets": ("assign_targets", (FLAT, None)),
    "retina_jax.training.objective": ("image_losses", (None, None, BOXES[0], None)),
}


def test_every_pure_module_has_a_case():
    assert set(WRONG) == set(PURE)


@pytest.mark.parametrize("module", PURE)
def test_a_wrong_shape_raises(module):
    function, arguments = WRONG[module]
    with pytest.raises(jaxtyping.TypeCheckError):
        getattr(importlib.import_module(module), function)(*arguments)
