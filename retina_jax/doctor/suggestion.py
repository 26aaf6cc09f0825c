"""Brings boxes within reach of anchors: for ``data.fit``, and as the doctor's advice.

There is one search, `fit_anchors`, and one target, `ENOUGH`. ``data.fit`` takes what the search
finds at the sizes that it has chosen; the doctor suggests it at the sizes of the config, or at the
smallest larger ones that reach the target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float, Int

from retina_jax.config import resolve
from retina_jax.config.shell import field_flag
from retina_jax.config.values import changed_config, leaves
from retina_jax.data.data_set import Split
from retina_jax.doctor.anchor_recall import InputBoxes, at_input, best_anchor_iou, group_recall
from retina_jax.doctor.fit_anchors import ENOUGH, fit_anchors, recalls, shortfall

ANCHORS = ("anchors.scale", "anchors.octaves", "anchors.ratios")
"""The fields that the search chooses."""
_SUGGESTED = (
    "data.short_side", "data.long_side", "data.buckets", "data.train_short_sides", *ANCHORS
)  # fmt: skip
_LARGER = (1.5, 2.0)
"""Factors of the input's sides that are suggested if the boxes are out of reach."""
_GAIN = 0.02
"""Recall that a suggestion must add, unless it reaches the target."""
_COST = 0.03
"""Recall that twice the pixels must add."""


@dataclasses.dataclass(frozen=True)
class Boxes:
    """The boxes of a split that training matches; xyxy, original pixels."""

    split: Split
    rows: Int[np.ndarray, "n"]
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, "n"]

    def at_input(self, config: ml_collections.ConfigDict) -> InputBoxes:
        return at_input(self.split, self.rows, self.boxes, config)


@dataclasses.dataclass(frozen=True)
class Reach:
    """Which boxes the anchors of a config match."""

    config: ml_collections.ConfigDict
    iou: Float[np.ndarray, "n"]
    """IoU of each box with its best anchor."""
    overall: float
    """Share of the boxes with ``matching.foreground_iou`` or more."""
    by_class: dict[int, float]
    """The same by label; without rare classes."""

    @property
    def is_enough(self) -> bool:
        """Whether all boxes together, and those of each class, reach `ENOUGH`."""
        return self.overall >= ENOUGH and min(self.by_class.values(), default=1.0) >= ENOUGH

    @property
    def shortfall(self) -> float:
        """Recall that is lacking, as the search counts it."""
        return shortfall(np.array([self.overall, *self.by_class.values()]))


def reach_of(boxes: Boxes, config: ml_collections.ConfigDict) -> Reach:
    """The reach of a config as it is."""
    iou = best_anchor_iou(boxes.at_input(config), resolve(config).buckets, config.anchors)
    return reach_at(config, iou, boxes.labels)


def reach_at(
    config: ml_collections.ConfigDict, iou: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"]
) -> Reach:
    """The reach of ``config`` where the IoU of each box with its best anchor is known."""
    return Reach(config, iou, *recalls(iou, labels, config.matching.foreground_iou))


def fitted_anchors(
    boxes: Boxes, config: ml_collections.ConfigDict, free: Set[str] = frozenset(ANCHORS)
) -> dict[str, Any]:
    """Values for the ``free`` ones of `ANCHORS`, at the input sizes of ``config``.

    ``boxes`` must hold at least one.
    """
    chosen = fit_anchors(
        boxes.at_input(config),
        boxes.labels,
        resolve(config).buckets,
        config.anchors,
        config.matching.foreground_iou,
        [name.partition(".")[2] for name in ANCHORS if name not in free],
        bool(config.data.get("turn", False)),
    )
    values = zip(ANCHORS, (chosen.scale, chosen.octaves, chosen.ratios), strict=True)
    return {name: value for name, value in values if name in free}


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


def suggest(boxes: Boxes, groups: Mapping[str, np.ndarray], now: Reach) -> Suggestion | None:
    """The anchors that ``data.fit`` would choose, and larger inputs if they need them.

    Inputs are enlarged only if no anchors reach `ENOUGH` at those of the config. If larger ones do
    not reach it either: the sizes that gain most for their pixels. None if the config reaches it,
    or nothing helps.

    Args:
      groups: masks over the boxes, for the recall before and after.
      now: the reach of the config to change.
    """
    if now.is_enough:
        return None
    config = now.config
    best, least = now, now.shortfall - _GAIN
    for factor in (1.0, *_LARGER):
        sizes = {} if factor == 1 else _larger_input(config.data, factor)
        larger = changed_config(config, sizes)
        reached = reach_of(boxes, changed_config(larger, fitted_anchors(boxes, larger)))
        if reached.is_enough:
            best = reached
            break
        if (lacking := reached.shortfall + _COST * 2 * np.log2(factor)) < least:
            best, least = reached, lacking
    if best is now:
        return None
    before, after = leaves(config), leaves(best.config)
    fields = {name: after[name] for name in _SUGGESTED if after[name] != before[name]}
    threshold = config.matching.foreground_iou
    return Suggestion(
        fields,
        group_recall(now.iou >= threshold, groups),
        group_recall(best.iou >= threshold, groups),
        _anchors_of(best.config) / _anchors_of(config),
        (best.config.data.short_side / config.data.short_side) ** 2,
    )


def _anchors_of(config: ml_collections.ConfigDict) -> int:
    """Anchors per cell."""
    return len(config.anchors.octaves) * len(config.anchors.ratios)


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
