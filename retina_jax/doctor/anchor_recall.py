"""Which boxes the configured anchors can match, exactly, and the cheapest change that helps.

For an anchor shape that stands on a grid, the IoU with a box falls as the distance of their
centres grows along either axis: the overlap along x is ``min(wa, wb, (wa + wb)/2 - |dx|)``, and IoU
rises with both overlaps. So of each level and shape the anchor at the nearest place of the grid is
the best there is, and one look at it stands for all the others.
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
from retina_jax.data.data_set import Split
from retina_jax.data.loader import placements
from retina_jax.ops.anchors import LEVELS, base_anchors, feature_grid, level_sizes, pyramid_anchors

ENOUGH = 0.9
"""Share of a group's boxes within reach under which a change is sought."""
LEAST_BOXES = 10
"""A group of fewer says nothing."""
_CHUNK = 1 << 15  # boxes at once: what one look needs stays in the cache
_SEARCH_BOXES = 3000
_SCALES = (0.25, 0.35, 0.5, 0.71, 1.0, 1.41, 2.0)
_SIZES = (1.0, 1.5, 2.0)
_OCTAVES = ((0.0, 0.5), (0.0, 0.3333, 0.6667), (0.0, 0.25, 0.5, 0.75))


@dataclasses.dataclass(frozen=True)
class InputBoxes:
    """Boxes as the network sees them: xyxy, pixels of its input, cut to the picture."""

    boxes: Float[np.ndarray, "n 4"]
    bucket: Int[np.ndarray, "n"]
    """Which of ``data.buckets`` each lies in."""


def at_input(
    split: Split,
    rows: Int[np.ndarray, "n"],
    boxes: Float[np.ndarray, "n 4"],
    config: ml_collections.ConfigDict,
) -> InputBoxes:
    """Boxes (xyxy, original pixels) of ``rows`` of a split, where `loader.placements` shows them.

    Without augmentation: at ``data.short_side``.
    """
    # placements asks for sizes alone
    placed = placements(dataclasses.replace(split, sizes=split.sizes[rows]), config)
    limits = np.stack([placed.width, placed.height] * 2, axis=1).astype(np.float64)
    factors = limits / split.sizes[rows][:, [1, 0, 1, 0]]
    return InputBoxes(np.clip(boxes * factors, 0, limits), placed.bucket)


def best_anchor_iou(
    given: InputBoxes, buckets: Sequence[tuple[int, int]], anchors: Mapping[str, Any]
) -> Float[np.ndarray, "n"]:
    """IoU, 0 to 1, of each box with the anchor that fits it best; a box of no area scores 0.

    ``anchors`` is the config's group.
    """
    best = np.zeros(len(given.boxes))
    shapes = _level_shapes(anchors)
    for number, bucket in enumerate(buckets):
        members = np.flatnonzero(given.bucket == number)
        if not len(members):
            continue
        grids = _level_grids(bucket, anchors)
        for start in range(0, len(members), _CHUNK):
            chunk = members[start : start + _CHUNK]
            distances = _distances(given.boxes[chunk], grids)
            best[chunk] = _best_of_shapes(given.boxes[chunk], distances, shapes)
    return best


def _level_shapes(anchors: Mapping[str, Any]) -> list[Float[np.ndarray, "b 2"]]:
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
    """Anchor centres of each level, along x and along y: read off the generator's own anchors."""
    # one square of the stride's size a place: its corners are exact in float32
    square = {**anchors, "scale": 1.0, "octaves": (0.0,), "ratios": (1.0,)}
    found = []
    for level, placed in zip(LEVELS, pyramid_anchors(bucket, **square), strict=True):
        centres = (placed[:, :2] + placed[:, 2:]).reshape(*feature_grid(bucket, level), 2) / 2.0
        found.append((centres[0, :, 0].astype(np.float64), centres[:, 0, 1].astype(np.float64)))
    return found


def _distances(
    boxes: Float[np.ndarray, "n 4"], grids: list[tuple[np.ndarray, np.ndarray]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """|dx| and |dy|, pixels, from the boxes' centres to the nearest place of each level."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return [(_to_nearest(centre[:, 0], x), _to_nearest(centre[:, 1], y)) for x, y in grids]


def _to_nearest(values: Float[np.ndarray, "n"], grid: np.ndarray) -> Float[np.ndarray, "n"]:
    stride = grid[1] - grid[0] if len(grid) > 1 else 1.0
    nearest = np.clip(np.round((values - grid[0]) / stride), 0, len(grid) - 1)
    return np.abs(values - grid[0] - nearest * stride)


def _best_of_shapes(
    boxes: Float[np.ndarray, "n 4"],
    distances: list[tuple[np.ndarray, np.ndarray]],
    shapes: list[Float[np.ndarray, "b 2"]],
) -> Float[np.ndarray, "n"]:
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
    """Fields to change, what they reach and what they cost."""

    fields: dict[str, Any]
    """``{"anchors.scale": 2.0, …}``"""
    before: dict[str, float]
    """Share of each group's boxes that an anchor can match now, at ``foreground_iou``."""
    after: dict[str, float]
    anchors_factor: float
    """Anchors of a place, times what they are now."""
    pixels_factor: float
    """Pixels of an input, times what they are now."""

    def flags(self) -> str:
        """As they are typed into a shell."""
        return " ".join(field_flag(name, _plain(v)) for name, v in self.fields.items())

    def text(self) -> str:
        """For messages: the flags, and what they cost where they do."""
        parts = []
        if self.pixels_factor > 1:
            parts.append(f"{self.pixels_factor:.3g} times the pixels")
        if self.anchors_factor > 1:
            parts.append(f"{self.anchors_factor:.2g} times the anchors")
        return f"with {self.flags()}" + (f" (for {' and '.join(parts)})" if parts else "")


def _plain(value: Any) -> Any:
    """A whole number without its fraction, to be typed."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def group_recall(
    within: np.ndarray, groups: Mapping[str, np.ndarray], least: int = LEAST_BOXES
) -> dict[str, float]:
    """Share of each group's boxes that are ``within`` reach (bool), of groups of ``least`` boxes.

    ``groups``: name to the places of its boxes, as a mask.
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
    """The cheapest change by which `ENOUGH` of each group's boxes reach ``foreground_iou``.

    Anchors (scale, octaves, ratios) come before larger inputs. Where nothing reaches it: what
    brings the worst group furthest for its cost. None where no change gains anything, or none is
    needed. Boxes: xyxy, original pixels; ``groups`` are masks over them.
    """
    wanted = config.matching.foreground_iou
    shown = at_input(split, rows, boxes, config)
    now = best_anchor_iou(shown, resolve(config).buckets, config.anchors)
    before = group_recall(now >= wanted, groups)
    if not before or min(before.values()) >= ENOUGH:
        return None
    kept = _spread(groups, before)
    sample = {name: mask[kept] for name, mask in groups.items() if name in before}
    places = _shown_places(split, rows[kept], boxes[kept], config)
    worst = groups[min(before, key=before.get)][kept]
    best, best_rank = None, None
    for cost, larger, candidate in _candidates(config, places[1.0][1].boxes, worst):
        if best_rank and best_rank[0] == 0 and cost > best_rank[1]:
            break  # none of the dearer ones can win
        fields, shown, distances = places[larger]
        shapes = _level_shapes(dict(config.anchors) | candidate)
        iou = np.zeros(len(kept))
        for members, far in distances:
            iou[members] = _best_of_shapes(shown.boxes[members], far, shapes)
        fields = fields | {
            f"anchors.{name}": value
            for name, value in candidate.items()
            if value != config.anchors[name]
        }
        reached = group_recall(iou >= wanted, sample, least=1)
        rank = _rank(reached, iou.mean(), cost, len(fields))
        if fields and (best_rank is None or rank < best_rank):
            best, best_rank = fields, rank
    return _judged(split, rows, boxes, groups, before, best, config)


def _judged(split, rows, boxes, groups, before, fields, config) -> Suggestion | None:
    """The best of the search, measured on all boxes."""
    changed = changed_config(config, fields)
    shown = at_input(split, rows, boxes, changed)
    iou = best_anchor_iou(shown, resolve(changed).buckets, changed.anchors)
    after = group_recall(iou >= config.matching.foreground_iou, groups)
    if min(after.values()) < min(before.values()) + 0.02:
        return None
    anchors_factor = _anchors_of(changed.anchors) / _anchors_of(config.anchors)
    pixels_factor = (changed.data.short_side / config.data.short_side) ** 2
    return Suggestion(fields, before, after, anchors_factor, pixels_factor)


def changed_config(
    config: ml_collections.ConfigDict, fields: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """A copy with some fields set."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.update_from_flattened_dict(dict(fields))
    return changed


def _anchors_of(anchors: Mapping[str, Any]) -> int:
    return len(anchors["octaves"]) * len(anchors["ratios"])


def _rank(reached: dict[str, float], mean_iou: float, cost: float, changes: int) -> tuple:
    """Lowest is best: cheap among those that reach enough; else far for the cost."""
    least = min(reached.values())
    if least >= ENOUGH:
        return 0, cost, changes, -mean_iou
    # doubling the cost must bring the worst group three hundredths further
    return 1, 0.03 * np.log2(cost) - least, changes, -mean_iou


def _spread(groups: Mapping[str, np.ndarray], names: Mapping[str, float]) -> np.ndarray:
    """Places of at most some thousand boxes, as many of each group as of any other."""
    each = max(50, _SEARCH_BOXES // len(names))
    kept = []
    for name in names:
        members = np.flatnonzero(groups[name])
        kept.append(members[np.linspace(0, len(members) - 1, min(each, len(members))).astype(int)])
    return np.unique(np.concatenate(kept))


def _shown_places(split, rows, boxes, config) -> dict[float, tuple]:
    """For each enlargement of the input: its fields, the boxes there, and the way to the grids."""
    found = {}
    for larger in _SIZES:
        fields = {} if larger == 1 else _larger_input(config.data, larger)
        data = changed_config(config, fields)
        shown = at_input(split, rows, boxes, data)
        distances = []
        for number, bucket in enumerate(resolve(data).buckets):
            members = np.flatnonzero(shown.bucket == number)
            grids = _level_grids(bucket, config.anchors)
            distances.append((members, _distances(shown.boxes[members], grids)))
        found[larger] = fields, shown, distances
    return found


def _larger_input(data: ml_collections.ConfigDict, factor: float) -> dict[str, Any]:
    fields = {
        "data.short_side": round(data.short_side * factor),
        "data.long_side": round(data.long_side * factor),
    }
    if data.buckets:  # else they follow
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
    """Changes to try, the cheapest first: cost, enlargement of the input, fields of anchors.

    The cost is of the head's outputs, times what they are now; fewer anchors are not what is
    sought, so they count as none. ``worst``: mask of the boxes that are worst off.
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
    """Height over width of narrow, middling and tall boxes: quantiles 1/6, 1/2 and 5/6."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    sound = (width > 0) & (height > 0)
    if not sound.any():
        return (0.5, 1.0, 2.0)
    logs = np.quantile(np.log(height[sound] / width[sound]), [1 / 6, 1 / 2, 5 / 6])
    fitted = (float(f"{r:.2g}") for r in np.clip(np.exp(logs), 0.05, 20))
    return tuple(dict.fromkeys(fitted))
