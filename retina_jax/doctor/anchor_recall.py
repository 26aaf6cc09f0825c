"""Computes exactly which boxes the configured anchors can match.

For a fixed anchor shape, the IoU with a box decreases as the distance between their centres grows
along either axis: the overlap along x is ``min(wa, wb, (wa + wb)/2 - |dx|)``, and IoU increases
with both overlaps. For each level and shape, the anchor at the nearest grid cell is therefore the
best, so only that one needs to be compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float, Int

from retina_jax.data.data_set import Split
from retina_jax.data.loader import placements
from retina_jax.ops.anchors import LEVELS, base_anchors, feature_grid, level_sizes, pyramid_anchors

LEAST_BOXES = 10
"""Smallest number of boxes in a group; smaller groups are not reported."""
_CHUNK = 1 << 15  # boxes per chunk, so that the working set fits the cache


@dataclasses.dataclass(frozen=True)
class InputBoxes:
    """Boxes at the network input: xyxy, pixels, clipped to the image."""

    boxes: Float[np.ndarray, "n 4"]
    bucket: Int[np.ndarray, "n"]
    """Index of the bucket of each box."""


def at_input(
    split: Split,
    rows: Int[np.ndarray, "n"],
    boxes: Float[np.ndarray, "n 4"],
    config: ml_collections.ConfigDict,
) -> InputBoxes:
    """Boxes (xyxy, original pixels) of ``rows`` of a split, scaled to the network input.

    Without augmentation, that is at ``data.short_side``.
    """
    # placements() only uses the sizes
    placed = placements(dataclasses.replace(split, sizes=split.sizes[rows]), config)
    limits = np.stack([placed.width, placed.height] * 2, axis=1).astype(np.float64)
    factors = limits / split.sizes[rows][:, [1, 0, 1, 0]]
    return InputBoxes(np.clip(boxes * factors, 0, limits), placed.bucket)


def best_anchor_iou(
    shown: InputBoxes, buckets: Sequence[tuple[int, int]], anchors: Mapping[str, Any]
) -> Float[np.ndarray, "n"]:
    """IoU, 0 to 1, of each box with its best anchor; 0 for a box without area.

    ``anchors`` is the config's group.
    """
    best = np.zeros(len(shown.boxes))
    shapes = level_shapes(anchors)
    for number, bucket in enumerate(buckets):
        members = np.flatnonzero(shown.bucket == number)
        if not len(members):
            continue
        grids = _level_grids(bucket, anchors)
        for start in range(0, len(members), _CHUNK):
            chunk = members[start : start + _CHUNK]
            distances = _distances(shown.boxes[chunk], grids)
            best[chunk] = best_of_shapes(shown.boxes[chunk], distances, shapes)
    return best


def level_shapes(anchors: Mapping[str, Any]) -> list[Float[np.ndarray, "b 2"]]:
    """Width and height of the base anchors of each level, pixels."""
    found = []
    for level in LEVELS:
        sizes = level_sizes(level, anchors["scale"], anchors["octaves"], anchors["truncate_sizes"])
        base = base_anchors(sizes, anchors["ratios"], anchors["order"], anchors["rounded"])
        found.append((base[:, 2:] - base[:, :2]).astype(np.float64))
    return found


def _level_grids(
    bucket: tuple[int, int], anchors: Mapping[str, Any]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Anchor centres of each level, along x and along y, taken from the anchor generator."""
    # one square anchor of stride size per cell: its corners are exact in float32
    square = {**anchors, "scale": 1.0, "octaves": (0.0,), "ratios": (1.0,)}
    found = []
    for level, placed in zip(LEVELS, pyramid_anchors(bucket, **square), strict=True):
        centres = (placed[:, :2] + placed[:, 2:]).reshape(*feature_grid(bucket, level), 2) / 2.0
        found.append((centres[0, :, 0].astype(np.float64), centres[:, 0, 1].astype(np.float64)))
    return found


def _distances(
    boxes: Float[np.ndarray, "n 4"], grids: list[tuple[np.ndarray, np.ndarray]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """|dx| and |dy|, pixels, from box centres to the nearest anchor centre of each level."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return [(_to_nearest(centre[:, 0], x), _to_nearest(centre[:, 1], y)) for x, y in grids]


def placed_distances(
    shown: InputBoxes, buckets: Sequence[tuple[int, int]], anchors: Mapping[str, Any]
) -> list[tuple[Int[np.ndarray, "_"], list[tuple[np.ndarray, np.ndarray]]]]:
    """For each bucket: the indices of its boxes, and `_distances` on its grids."""
    found = []
    for number, bucket in enumerate(buckets):
        members = np.flatnonzero(shown.bucket == number)
        grids = _level_grids(bucket, anchors)
        found.append((members, _distances(shown.boxes[members], grids)))
    return found


def _to_nearest(values: Float[np.ndarray, "n"], grid: np.ndarray) -> Float[np.ndarray, "n"]:
    stride = grid[1] - grid[0] if len(grid) > 1 else 1.0
    nearest = np.clip(np.round((values - grid[0]) / stride), 0, len(grid) - 1)
    return np.abs(values - grid[0] - nearest * stride)


def best_of_shapes(
    boxes: Float[np.ndarray, "n 4"],
    distances: list[tuple[np.ndarray, np.ndarray]],
    shapes: list[Float[np.ndarray, "b 2"]],
) -> Float[np.ndarray, "n"]:
    """IoU of each box with its best anchor, from `_distances` and `level_shapes`."""
    width, height = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).T
    area = width * height
    best = np.zeros(len(boxes))
    for (dx, dy), level in zip(distances, shapes, strict=True):
        for w, h in level:
            shared_x = np.minimum(np.minimum(width, w), (width + w) / 2 - dx)
            shared_y = np.minimum(np.minimum(height, h), (height + h) / 2 - dy)
            shared = np.maximum(shared_x, 0) * np.maximum(shared_y, 0)
            union = np.maximum(area + w * h - shared, 1e-12)
            np.maximum(best, shared / union, out=best)
    return best


def group_recall(
    within: np.ndarray, groups: Mapping[str, np.ndarray], least: int = LEAST_BOXES
) -> dict[str, float]:
    """Share of matched boxes in each group with at least ``least`` boxes.

    ``within``: whether each box has a matching anchor. ``groups``: name to mask over the boxes.
    """
    return {
        name: float(within[mask].mean()) for name, mask in groups.items() if mask.sum() >= least
    }
