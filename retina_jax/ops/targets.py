"""Training targets of the anchors, from ground-truth boxes."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Float

from retina_jax.ops.atss import match_atss
from retina_jax.ops.boxes import encode
from retina_jax.ops.matching import Match, match_anchors
from retina_jax.types import Array, GroundTruth, Targets


def assign_targets(
    anchors: Float[Array, "a 4"],
    ground_truth: GroundTruth,
    grids: Sequence[tuple[int, int]] = (),
    kind: str = "iou",
    foreground_iou: float = 0.5,
    background_iou: float = 0.4,
    low_quality: bool = True,
    atss_candidates: int = 9,
    coder_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Targets:
    """Targets of one image; ``vmap`` over ``ground_truth`` for a batch.

    Anchors and boxes are in pixels of the input. Without boxes, all anchors are background.
    ``kind`` selects the rule: "iou" (`match_anchors`) or "atss" (`match_atss`), which needs
    ``grids``, the rows and columns of each level (`anchors.pyramid_grids`), and has no use for
    ``foreground_iou`` and ``low_quality``.
    """
    truth = ground_truth.boxes, ground_truth.valid, ground_truth.is_crowd
    if kind == "atss":
        matched = match_atss(anchors, *truth, grids, atss_candidates, background_iou)
    else:
        matched = match_anchors(anchors, *truth, foreground_iou, background_iou, low_quality)
    foreground = matched >= 0
    box = jnp.maximum(matched, 0)
    # other anchors use themselves as their box, so that encode() never takes log(0)
    matched_box = jnp.stack([ground_truth.boxes[:, i][box] for i in range(4)], axis=-1)
    own_box = jnp.where(foreground[:, None], matched_box, anchors)
    return Targets(
        labels=jnp.where(foreground, ground_truth.labels[box], -1),
        boxes=own_box,
        deltas=encode(own_box, anchors, coder_weights),
        foreground=foreground,
        ignore=matched == Match.IGNORE,
    )
