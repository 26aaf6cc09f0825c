"""Computes exactly which boxes the configured anchors can match, and the cheapest improvement.

For a fixed anchor shape, the IoU with a box decreases as the distance between their centres grows
along either axis: the overlap along x is ``min(wa, wb, (wa + wb)/2 - |dx|)``, and IoU increases
with both overlaps. For each level and shape, the anchor at the nearest grid cell is therefore the
best, so only that one needs to be compared.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float, Int

from retina_jax.config import resolve
from retina_jax.config.shell import field_flag
from retina_jax.config.values import changed_config
from retina_jax.data.data_set import Split
from retina_jax.data.loader import placements
from retina_jax.ops.anchors import LEVELS, base_anchors, feature_grid, level_sizes, pyramid_anchors

ENOUGH = 0.9
"""Recall below which a change of anchors is searched for."""
LEAST_BOXES = 10
"""Smallest number of boxes in a group; smaller groups are not reported."""
_CHUNK = 1 << 15  # boxes per chunk, so that the working set fits the cache
_SEARCH_BOXES = 3000
_SCALES = (0.25, 0.35, 0.5, 0.71, 1.0, 1.41, 2.0)
_SIZES = (1.0, 1.5, 2.0)
_OCTAVES = ((0.0, 0.5), (0.0, 0.3333, 0.6667), (0.0, 0.25, 0.5, 0.75))


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


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """Fields to change, the recall they reach and their cost."""

    fields: dict[str, Any]
    """``{"anchors.scale": 2.0, …}``"""
    before: dict[str, float]
    """Recall of each group of boxes at ``foreground_iou``, with the current config."""
    after: dict[str, float]
    anchors_factor: float
    """Anchors per cell, relative to the current config."""
    pixels_factor: float
    """Input pixels, relative to the current config."""

    def flags(self) -> str:
        """The flags, quoted for a shell."""
        return " ".join(field_flag(name, _plain(v)) for name, v in self.fields.items())

    def text(self) -> str:
        """For messages: the flags and, if any, their cost."""
        parts = []
        if self.pixels_factor > 1:
            parts.append(f"{self.pixels_factor:.3g} times the pixels")
        if self.anchors_factor > 1:
            parts.append(f"{self.anchors_factor:.2g} times the anchors")
        return f"with {self.flags()}" + (f" (costs {' and '.join(parts)})" if parts else "")


def _plain(value: Any) -> Any:
    """A whole float as an int, which is shorter to type."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def group_recall(
    within: np.ndarray, groups: Mapping[str, np.ndarray], least: int = LEAST_BOXES
) -> dict[str, float]:
    """Share of matched boxes in each group with at least ``least`` boxes.

    ``within``: whether each box has a matching anchor. ``groups``: name to mask over the boxes.
    """
    return {
        name: float(within[mask].mean()) for name, mask in groups.items() if mask.sum() >= least
    }


def suggest(
    split: Split,
    rows: Int[np.ndarray, "n"],
    boxes: Float[np.ndarray, "n 4"],
    groups: Mapping[str, np.ndarray],
    config: ml_collections.ConfigDict,
) -> Suggestion | None:
    """The cheapest change that brings the recall of every group to `ENOUGH`.

    Changes of the anchors (scale, octaves, ratios) are preferred to larger inputs. If no change
    reaches `ENOUGH`: the one that improves the worst group most for its cost. None if no change
    helps or none is needed. Boxes: xyxy, original pixels; ``groups`` are masks over them.
    """
    threshold = config.matching.foreground_iou
    shown = at_input(split, rows, boxes, config)
    now = best_anchor_iou(shown, resolve(config).buckets, config.anchors)
    before = group_recall(now >= threshold, groups)
    if not before or min(before.values()) >= ENOUGH:
        return None
    kept = _spread(groups, before)
    sample = {name: mask[kept] for name, mask in groups.items() if name in before}
    places = _shown_places(split, rows[kept], boxes[kept], config)
    worst = groups[min(before, key=before.get)][kept]
    best, best_rank = None, None
    for cost, larger, candidate in _candidates(config, places[1.0][1].boxes, worst):
        if best_rank and best_rank[0] == 0 and cost > best_rank[1]:
            break  # no more expensive candidate can win
        fields, shown, distances = places[larger]
        shapes = level_shapes(dict(config.anchors) | candidate)
        iou = np.zeros(len(kept))
        for members, far in distances:
            iou[members] = best_of_shapes(shown.boxes[members], far, shapes)
        fields = fields | {
            f"anchors.{name}": value
            for name, value in candidate.items()
            if value != config.anchors[name]
        }
        reached = group_recall(iou >= threshold, sample, least=1)
        rank = _rank(reached, iou.mean(), cost, len(fields))
        if fields and (best_rank is None or rank < best_rank):
            best, best_rank = fields, rank
    return _judged(split, rows, boxes, groups, before, best, config)


def _judged(split, rows, boxes, groups, before, fields, config) -> Suggestion | None:
    """The best candidate of the search, evaluated on all boxes."""
    changed = changed_config(config, fields)
    shown = at_input(split, rows, boxes, changed)
    iou = best_anchor_iou(shown, resolve(changed).buckets, changed.anchors)
    after = group_recall(iou >= config.matching.foreground_iou, groups)
    if min(after.values()) < min(before.values()) + 0.02:
        return None
    anchors_factor = _anchors_of(changed.anchors) / _anchors_of(config.anchors)
    pixels_factor = (changed.data.short_side / config.data.short_side) ** 2
    return Suggestion(fields, before, after, anchors_factor, pixels_factor)


def _anchors_of(anchors: Mapping[str, Any]) -> int:
    return len(anchors["octaves"]) * len(anchors["ratios"])


def _rank(reached: dict[str, float], mean_iou: float, cost: float, changes: int) -> tuple:
    """Sort key, lowest is best: by cost if recall is enough, else by recall for the cost."""
    least = min(reached.values())
    if least >= ENOUGH:
        return 0, cost, changes, -mean_iou
    # twice the cost must improve the recall of the worst group by 0.03
    return 1, 0.03 * np.log2(cost) - least, changes, -mean_iou


def _spread(groups: Mapping[str, np.ndarray], names: Mapping[str, float]) -> np.ndarray:
    """Indices of a few thousand boxes at most, sampled equally from all groups."""
    each = max(50, _SEARCH_BOXES // len(names))
    kept = []
    for name in names:
        members = np.flatnonzero(groups[name])
        kept.append(members[np.linspace(0, len(members) - 1, min(each, len(members))).astype(int)])
    return np.unique(np.concatenate(kept))


def _shown_places(split, rows, boxes, config) -> dict[float, tuple]:
    """For each input scale: its fields, the boxes at the input, and distances to the grids."""
    found = {}
    for larger in _SIZES:
        fields = {} if larger == 1 else _larger_input(config.data, larger)
        data = changed_config(config, fields)
        shown = at_input(split, rows, boxes, data)
        distances = placed_distances(shown, resolve(data).buckets, config.anchors)
        found[larger] = fields, shown, distances
    return found


def _larger_input(data: ml_collections.ConfigDict, factor: float) -> dict[str, Any]:
    fields = {
        "data.short_side": round(data.short_side * factor),
        "data.long_side": round(data.long_side * factor),
    }
    if data.buckets:  # otherwise they are derived
        fields["data.buckets"] = tuple(
            tuple(-(-int(side * factor) // 32) * 32 for side in bucket) for bucket in data.buckets
        )
    if data.train_short_sides:
        sides = tuple(round(side * factor) for side in data.train_short_sides)
        fields["data.train_short_sides"] = sides
    return fields


def _candidates(
    config: ml_collections.ConfigDict, boxes: np.ndarray, worst: np.ndarray
) -> list[tuple[float, float, dict[str, Any]]]:
    """Changes to try, cheapest first: cost, input scale, anchor fields.

    The cost is the number of head outputs relative to the current config; fewer anchors per cell
    do not lower it. ``worst``: mask of the boxes in the group with the lowest recall.
    """
    now = config.anchors
    ratios = [tuple(now.ratios), (0.5, 1.0, 2.0), _fitted(boxes), _fitted(boxes[worst])]
    ratios = dict.fromkeys([*ratios, (0.33, 0.5, 1.0, 2.0, 3.0)])
    octaves = dict.fromkeys([tuple(now.octaves), *_OCTAVES])
    scales = [float(f"{now.scale * factor:.3g}") for factor in _SCALES]
    found = []
    for size, scale, octave, ratio in itertools.product(_SIZES, scales, octaves, ratios):
        fields = {"scale": scale, "octaves": octave, "ratios": ratio}
        cost = size**2 * max(1.0, _anchors_of(fields) / _anchors_of(now))
        found.append((round(cost, 3), size, fields))
    return sorted(found, key=lambda candidate: candidate[0])


def _fitted(boxes: Float[np.ndarray, "n 4"]) -> tuple[float, ...]:
    """Aspect ratios (height / width) fitted to boxes: quantiles 1/6, 1/2 and 5/6."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    sound = (width > 0) & (height > 0)
    if not sound.any():
        return (0.5, 1.0, 2.0)
    logs = np.quantile(np.log(height[sound] / width[sound]), [1 / 6, 1 / 2, 5 / 6])
    fitted = (float(f"{r:.2g}") for r in np.clip(np.exp(logs), 0.05, 20))
    return tuple(dict.fromkeys(fitted))
