"""Matching of anchors to boxes."""

import enum

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from retina_jax.ops.boxes import area, pairwise_intersection, pairwise_iou
from retina_jax.types import Array


class Match(enum.IntEnum):
    """Special values of a matched index."""

    BACKGROUND = -1
    IGNORE = -2


def match_iou(
    iou: Float[Array, "a m"],
    valid: Bool[Array, "m"],
    foreground_iou: float = 0.5,
    background_iou: float = 0.4,
    low_quality: bool = True,
) -> Int[Array, "a"]:
    """Index of the box that each anchor is matched to, or a `Match`; int32.

    An anchor is matched to its best box at an IoU of ``foreground_iou`` or more, is background
    below ``background_iou``, and is ignored in between. With ``low_quality``, the anchors with the
    highest IoU with a box (all that tie) are foreground too, and are matched to *their* best box,
    as in Detectron2 and torchvision. A box that overlaps no anchor claims none. Ties go to the
    first box.
    """
    # the barrier keeps XLA from recomputing the IoU with other roundings next to its maximum
    iou = jax.lax.optimization_barrier(jnp.where(valid, iou, -1.0))
    best_box = jnp.argmax(iou, axis=1).astype(jnp.int32)
    best_iou = jnp.max(iou, axis=1)
    matched = jnp.where(best_iou >= background_iou, Match.IGNORE, Match.BACKGROUND)
    foreground = best_iou >= foreground_iou
    if low_quality:
        best_anchor_iou = jnp.max(iou, axis=0, keepdims=True)
        claimed = (iou == best_anchor_iou) & (best_anchor_iou > 0)
        foreground |= claimed.any(axis=1)
    return jnp.where(foreground, best_box, matched).astype(jnp.int32)


def match_anchors(
    anchors: Float[Array, "a 4"],
    boxes: Float[Array, "m 4"],
    valid: Bool[Array, "m"],
    is_crowd: Bool[Array, "m"],
    foreground_iou: float = 0.5,
    background_iou: float = 0.4,
    low_quality: bool = True,
) -> Int[Array, "a"]:
    """`match_iou` for one image with crowds: index into ``boxes`` or a `Match`; int32.

    Anchors are never matched to a crowd. A background anchor is ignored if a crowd covers a share
    of its area of ``background_iou`` or more, because it does not show background. COCO also
    compares detections with crowds by this share rather than by IoU.
    """
    iou = pairwise_iou(anchors, boxes)
    matched = match_iou(iou, valid & ~is_crowd, foreground_iou, background_iou, low_quality)
    anchor_area = jnp.maximum(area(anchors), 1e-6)
    covered = pairwise_intersection(anchors, boxes) / anchor_area[:, None]
    on_crowd = ((covered >= background_iou) & valid & is_crowd).any(axis=1)
    return jnp.where(on_crowd & (matched == Match.BACKGROUND), Match.IGNORE, matched)
