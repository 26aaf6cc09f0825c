"""Matching of anchors to boxes."""

import enum
from collections.abc import Callable

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
    iou, nowhere = jnp.asarray(iou), jnp.zeros(len(iou), bool)
    return _match(
        lambda box: (iou[:, box], nowhere),
        len(iou),
        valid,
        jnp.zeros_like(valid),
        foreground_iou,
        background_iou,
        low_quality,
    )


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

    Boxes are compared one at a time, so that no array ``[a, m]`` is written to memory.
    """
    anchor_area = jnp.maximum(area(anchors), 1e-6)

    def column(box):
        one = jax.lax.dynamic_slice_in_dim(boxes, box, 1)
        iou = pairwise_iou(anchors, one)[:, 0]
        covered = pairwise_intersection(anchors, one)[:, 0] / anchor_area
        return iou, covered >= background_iou

    return _match(
        column, len(anchors), valid, is_crowd, foreground_iou, background_iou, low_quality
    )


def covered_by_crowds(
    anchors: Float[Array, "a 4"],
    boxes: Float[Array, "m 4"],
    is_crowd: Bool[Array, "m"],
    share: float,
) -> Bool[Array, "a"]:
    """Whether a crowd covers a share of each anchor's area of ``share`` or more.

    Like `match_anchors`, a loop over boxes; it ends with the last crowd of the batch.
    """
    anchor_area = jnp.maximum(area(anchors), 1e-6)
    is_crowd = jnp.asarray(is_crowd)

    def add(box, covered):
        one = jax.lax.dynamic_slice_in_dim(jnp.asarray(boxes), box, 1)
        shared = pairwise_intersection(anchors, one)[:, 0]
        return covered | ((shared / anchor_area >= share) & is_crowd[box])

    last = jnp.max(jnp.where(is_crowd, jnp.arange(1, len(is_crowd) + 1), 0), initial=0)
    return jax.lax.fori_loop(0, _largest_of_batch(last), add, jnp.zeros(len(anchors), bool))


def _match(
    column: Callable[[Array], tuple[Array, Array]],
    anchors: int,
    valid: Bool[Array, "m"],
    is_crowd: Bool[Array, "m"],
    foreground_iou: float,
    background_iou: float,
    low_quality: bool,
) -> Int[Array, "a"]:
    """The rule of `match_anchors`.

    ``column(box)`` gives the IoU of each anchor with a box, and whether the box covers it: ``[a]``.
    """
    valid, is_crowd = jnp.asarray(valid), jnp.asarray(is_crowd)

    def compare(box, state):
        best_iou, best_box, claimed, on_crowd = state
        iou, covered = column(box)
        counts = valid[box] & ~is_crowd[box]
        # the barrier keeps XLA from recomputing the IoU with other roundings next to its maximum
        iou = jax.lax.optimization_barrier(jnp.where(counts, iou, -1.0))
        if low_quality:
            highest = jnp.max(iou)
            claimed |= (iou == highest) & (highest > 0)
        on_crowd |= covered & valid[box] & is_crowd[box]
        better = iou > best_iou
        return (
            jnp.where(better, iou, best_iou),
            jnp.where(better, box, best_box),
            claimed,
            on_crowd,
        )

    no = jnp.zeros(anchors, bool)
    start = jnp.full(anchors, -1.0), jnp.zeros(anchors, jnp.int32), no, no
    last = jnp.max(jnp.where(valid, jnp.arange(1, len(valid) + 1), 0), initial=0)
    best_iou, best_box, claimed, on_crowd = jax.lax.fori_loop(
        0, _largest_of_batch(last), compare, start
    )
    matched = jnp.where(best_iou >= background_iou, Match.IGNORE, Match.BACKGROUND)
    matched = jnp.where(on_crowd & (matched == Match.BACKGROUND), Match.IGNORE, matched)
    foreground = (best_iou >= foreground_iou) | claimed
    return jnp.where(foreground, best_box, matched).astype(jnp.int32)


@jax.custom_batching.custom_vmap
def _largest_of_batch(count: Int[Array, ""]) -> Int[Array, ""]:
    """``count``; under `jax.vmap`, the largest of the batch, so that a loop has one length."""
    return count


@_largest_of_batch.def_vmap
def _(axis_size, in_batched, count):
    del axis_size
    return (count.max() if in_batched[0] else count), False
