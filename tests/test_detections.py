"""From torchvision's logits and deltas to its final detections, in original pixels.

Detectron2 cuts boxes to the picture after NMS, not before: its detections differ in a few boxes.
"""

import jax
import numpy as np
import pytest

from retina_jax.anchors import LEVELS, feature_grid
from retina_jax.evaluation.nms import suppress
from retina_jax.postprocess import select_candidates


@pytest.mark.parametrize("system", ["torchvision_v1", "torchvision_v2"])
def test_detections_equal_torchvision(golden, system):
    case = golden(system)
    input_size = case["batch"].shape[1:3]
    counts = [9 * np.prod(feature_grid(input_size, level)) for level in LEVELS]
    levels = np.cumsum(counts)[:-1]
    anchors = np.split(case["anchors"], levels)
    for i in range(2):
        size = case["image_sizes"][i].astype(np.int32)
        found = jax.jit(select_candidates)(
            np.split(case["cls_logits"][i], levels),
            np.split(case["box_regression"][i], levels),
            anchors,
            size,
        )
        found = suppress(jax.tree.map(np.asarray, found), 0.5, 300)
        y, x = np.array(case[f"image_{i}"].shape[:2]) / size
        ours = np.column_stack([found.labels, found.scores, found.boxes * [x, y, x, y]])
        theirs = np.column_stack(
            [case[f"det_{name}_{i}"] for name in ("labels", "scores", "boxes")]
        )
        assert len(ours) == len(theirs)
        # the same set: each of theirs has one of ours of its label, near in score and place
        same_label = ours[:, None, 0] == theirs[None, :, 0]
        score_gap = np.abs(ours[:, None, 1] - theirs[None, :, 1])
        box_gap = np.abs(ours[:, None, 2:] - theirs[None, :, 2:]).max(-1)
        pairs = same_label & (score_gap < 1e-4) & (box_gap < 0.05)
        assert pairs.any(axis=0).all()
        assert pairs.any(axis=1).all()
