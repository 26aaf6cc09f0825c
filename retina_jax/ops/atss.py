"""Adaptive training sample selection (ATSS, arXiv:1912.02424): a threshold for each box.

Anchors are those of a pyramid (`anchors.pyramid_anchors`): level by level and row by row, with the
same number at every place. The places nearest to a point therefore lie in a small window of each
level's grid, so nothing here is an array of anchors by boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from retina_jax.ops.boxes import pairwise_iou
from retina_jax.ops.matching import Match, covered_by_crowds
from retina_jax.types import Array


@flax.struct.dataclass
class AtssCandidates:
    """The anchors whose centres are nearest to each box, on every level."""

    anchor: Int[Array, "m c"]
    iou: Float[Array, "m c"]
    inside: Bool[Array, "m c"]
    """Whether the anchor's centre lies strictly inside the box."""
    positive: Bool[Array, "m c"]
    """Whether it does, and the IoU reaches the box's threshold."""


def match_atss(
    anchors: Float[Array, "a 4"],
    boxes: Float[Array, "m 4"],
    valid: Bool[Array, "m"],
    is_crowd: Bool[Array, "m"],
    grids: Sequence[tuple[int, int]],
    candidates: int = 9,
    crowd_share: float = 0.4,
) -> Int[Array, "a"]:
    """Index into ``boxes`` that each anchor of one image is matched to, or a `Match`; int32.

    Algorithm 1 of the paper: the candidates of a box are the anchors at the ``candidates`` places
    of each level whose centres are nearest to its centre. A candidate is foreground if its IoU is
    at least the mean plus the standard deviation of the IoUs of all candidates of the box, and if
    its centre lies strictly inside the box. An anchor of several boxes is matched to the one with
    the highest IoU, the first if they tie. All other anchors are background, except those that
    `covered_by_crowds` finds for ``crowd_share``: they are ignored, as in `matching.match_anchors`.

    Where the paper leaves a choice, this is the authors' code: several anchors at a place are all
    candidates, and the standard deviation is that of a sample (divided by one less than the
    number). Of places at the same distance, the first in the order of the anchors is nearer. The
    authors require the centre to be 0.01 pixels inside the box.

    ``grids``: rows and columns of each level (`anchors.pyramid_grids`).
    """
    boxes, valid, is_crowd = jnp.asarray(boxes), jnp.asarray(valid), jnp.asarray(is_crowd)
    found = atss_candidates(anchors, boxes, grids, candidates)
    positive = found.positive & (valid & ~is_crowd)[:, None]
    # the barrier keeps XLA from recomputing the IoU with other roundings next to each use
    iou = jax.lax.optimization_barrier(jnp.where(positive, found.iou, -1.0))
    best = jnp.full(len(anchors), -1.0).at[found.anchor].max(iou)
    is_best = positive & (iou == best[found.anchor])
    box = jnp.broadcast_to(jnp.arange(len(boxes), dtype=jnp.int32)[:, None], iou.shape)
    nowhere = len(anchors)  # dropped
    first = jnp.full(len(anchors), len(boxes), jnp.int32)
    first = first.at[jnp.where(is_best, found.anchor, nowhere)].min(box, mode="drop")
    ignored = covered_by_crowds(anchors, boxes, valid & is_crowd, crowd_share)
    matched = jnp.where(ignored, Match.IGNORE, Match.BACKGROUND)
    return jnp.where(first < len(boxes), first, matched).astype(jnp.int32)


def atss_candidates(
    anchors: Float[Array, "a 4"],
    boxes: Float[Array, "m 4"],
    grids: Sequence[tuple[int, int]],
    candidates: int = 9,
) -> AtssCandidates:
    """The candidates of each box by `match_atss`, ``c`` in all, before boxes compete for them."""
    anchors, boxes = jnp.asarray(anchors), jnp.asarray(boxes)
    per_place = len(anchors) // sum(rows * columns for rows, columns in grids)
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    start, nearest = 0, []
    for rows, columns in grids:
        end = start + rows * columns * per_place
        of_row = anchors[start : start + columns * per_place : per_place]
        of_column = anchors[start : end : columns * per_place]
        place = _nearest_places(
            x, y, (of_row[:, 0] + of_row[:, 2]) / 2, (of_column[:, 1] + of_column[:, 3]) / 2,
            candidates,
        )  # fmt: skip
        anchor = start + place[:, :, None] * per_place + jnp.arange(per_place)
        nearest.append(anchor.reshape(len(boxes), place.shape[1] * per_place))
        start = end
    anchor = jnp.concatenate(nearest, axis=1)
    own = jnp.stack([anchors[:, i][anchor] for i in range(4)], axis=-1)
    iou = jax.vmap(lambda box, own: pairwise_iou(own, box[None])[:, 0])(boxes, own)
    mean = iou.mean(axis=1, keepdims=True)
    squares = jnp.square(iou - mean).sum(axis=1, keepdims=True)
    threshold = mean + jnp.sqrt(squares / max(iou.shape[1] - 1, 1))
    centre = (own[..., :2] + own[..., 2:]) / 2
    inside = ((centre > boxes[:, None, :2]) & (centre < boxes[:, None, 2:])).all(axis=-1)
    return AtssCandidates(anchor, iou, inside, (iou >= threshold) & inside)


def _nearest_places(
    x: Float[Array, "m"],
    y: Float[Array, "m"],
    columns: Float[Array, "w"],
    rows: Float[Array, "h"],
    count: int,
) -> Int[Array, "m k"]:
    """The ``count`` places of a regular grid (or all) that are nearest to each point, row by row.

    ``columns`` and ``rows`` are the grid's coordinates, pixels. Beyond a window of ``count + 2``
    columns around a point, every place has ``count`` nearer ones in its own row; and so for rows.
    """

    def window(points, centres):
        size = min(count + 2, len(centres))
        nearest = jnp.argmin(jnp.abs(centres - points[:, None]), axis=1)
        first = jnp.clip(nearest - size // 2, 0, len(centres) - size)
        place = first[:, None] + jnp.arange(size)
        return place, jnp.square(centres[place] - points[:, None])

    column, dx2 = window(x, columns)
    row, dy2 = window(y, rows)
    # rounded before they are added, so that places that mirror each other tie
    dx2, dy2 = jax.lax.optimization_barrier((dx2, dy2))
    distance = dy2[:, :, None] + dx2[:, None, :]
    place = row[:, :, None] * len(columns) + column[:, None, :]
    by_box = len(x), row.shape[1] * column.shape[1]
    _, nearest = jax.lax.top_k(-distance.reshape(by_box), min(count, by_box[1]))
    return jnp.take_along_axis(place.reshape(by_box), nearest, axis=1)
