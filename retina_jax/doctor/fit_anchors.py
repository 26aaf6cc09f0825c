"""Chooses anchor scale, octaves and ratios for the boxes of a data set.

The IoU of every box with its best anchor of each size and ratio is computed once, with the exact
arithmetic of `anchor_recall`; a set of anchors is then the maximum over its members.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from retina_jax.doctor.anchor_recall import (
    InputBoxes,
    best_of_shapes,
    group_recall,
    level_shapes,
    placed_distances,
)

ENOUGH = 0.98
"""Share of all boxes, and of those of each class, that the anchors should match."""
LEAST_BOXES = 50
"""Smallest number of boxes of a class that is looked at on its own: there, one box is 2 %."""
OCTAVES = ((0.0,), (0.0, 1 / 2), (0.0, 1 / 3, 2 / 3))
MOST_RATIOS = 3
_COST = 0.03
"""IoU that twice the anchors must add; so must a scale of half or twice the usual one."""
_LACKING = 10.0
"""IoU that a lack of recall of 1 counts as."""
_USUAL_SCALE = 4.0  # the pyramid's levels are made for objects of 4 to 8 strides
_SCALES = tuple(float(f"{_USUAL_SCALE * 2 ** (n / 12):.3g}") for n in range(-36, 13))
_RATIO_STEP = 0.5  # log2; a box whose ratio is off by a quarter of an octave keeps an IoU of 0.84
_SAMPLE = 3000
_MARGIN = 0.005  # of the recall on a sample


@dataclasses.dataclass(frozen=True, order=True)
class Anchors:
    """Values of ``anchors.scale``, ``anchors.octaves`` and ``anchors.ratios``."""

    scale: float
    octaves: tuple[float, ...]
    ratios: tuple[float, ...]

    def __len__(self) -> int:
        """Anchors per cell."""
        return len(self.octaves) * len(self.ratios)


def fit_anchors(
    shown: InputBoxes,
    labels: Int[np.ndarray, "n"],
    buckets: Sequence[tuple[int, int]],
    anchors: Mapping[str, Any],
    threshold: float,
    kept: Collection[str] = (),
    turned: bool = False,
) -> Anchors:
    """The anchors that match `ENOUGH` boxes at IoU ``threshold``, closely and with few shapes.

    Maximises the mean IoU of a box with its best anchor, less 0.03 for every doubling of the number
    of anchors and for every factor of two between the scale and 4. Recall comes first: if less than
    `ENOUGH` of all boxes or of a class with `LEAST_BOXES` is matched, every percent that the worst
    of these lacks, and every percent that they lack on average, counts as an IoU of 0.1. For every
    number of octaves and ratios, the search changes one value at a time while that helps.

    Args:
      shown: boxes at the network input, all with area; at least one.
      labels: class of each box.
      anchors: the config's group; its other fields apply to every candidate.
      kept: of scale, octaves and ratios, the names that stay as they are in ``anchors``.
      turned: images also appear turned by 90°, so ratios come with their inverse.
    """
    sample = _sampled(labels)
    boxes = InputBoxes(shown.boxes[sample], shown.bucket[sample])
    enough = ENOUGH + (_MARGIN if len(sample) < len(labels) else 0.0)
    judge = _Judge(_Table(boxes, buckets, anchors), labels, sample, threshold, enough)
    scales = (float(anchors["scale"]),) if "scale" in kept else _SCALES
    octaves = (tuple(anchors["octaves"]),) if "octaves" in kept else OCTAVES
    if "ratios" in kept:
        starts, ratios = [tuple(anchors["ratios"])], ()
    else:
        starts, ratios = _ratios(boxes.boxes, turned)
    found = [
        _climb(Anchors(scales[len(scales) // 2], octave, start), scales, ratios, judge, turned)
        for octave, start in itertools.product(octaves, starts)
    ]
    return min(found)[1]


def _climb(
    candidate: Anchors,
    scales: Sequence[float],
    ratios: Sequence[float],
    judge: _Judge,
    turned: bool,
) -> tuple[tuple, Anchors]:
    """Changes the scale, then one ratio after the other, to the best value while that helps."""
    best = judge.rank(candidate), candidate
    before = None
    while best != before:
        before = best
        others = [dataclasses.replace(best[1], scale=scale) for scale in scales]
        best = min(best, *((judge.rank(other), other) for other in others))
        for place in range(len(best[1].ratios)):
            others = [_with_ratio(best[1], place, ratio, turned) for ratio in ratios]
            others = [other for other in others if len(other) == len(candidate)]
            best = min([best, *((judge.rank(other), other) for other in others)])
    return best


def _with_ratio(anchors: Anchors, place: int, ratio: float, turned: bool) -> Anchors:
    """``anchors`` with another ratio and, if images are turned, its inverse."""
    ratios = list(anchors.ratios)
    ratios[place] = ratio
    if turned:
        ratios[-1 - place] = _short(1 / ratio)
        if len(ratios) % 2:
            ratios[len(ratios) // 2] = 1.0
    return dataclasses.replace(anchors, ratios=tuple(sorted(set(ratios))))


def recalls(
    matched: Bool[np.ndarray, "n"], labels: Int[np.ndarray, "n"]
) -> tuple[float, dict[int, float]]:
    """Share of boxes that are matched: of all, and by class if not rare."""
    groups = {int(label): labels == label for label in np.unique(labels)}
    return float(matched.mean()), group_recall(matched, groups, LEAST_BOXES)


def shortfall(recall: Float[np.ndarray, "n"], enough: float = ENOUGH) -> float:
    """Recall that the worst of several groups lacks, plus what they lack on average."""
    lacking = np.maximum(enough - recall, 0.0)
    return float(lacking.max() + lacking.mean())


def _sampled(labels: np.ndarray) -> Int[np.ndarray, "_"]:
    """Indices of a few thousand boxes at most, as many of each class as there are, if few."""
    classes = np.unique(labels)
    each = max(LEAST_BOXES, _SAMPLE // len(classes))
    if len(labels) <= _SAMPLE:
        return np.arange(len(labels))
    parts = [np.flatnonzero(labels == label) for label in classes]
    return np.concatenate(
        [p[np.linspace(0, len(p) - 1, min(each, len(p))).astype(np.int64)] for p in parts]
    )


class _Judge:
    """Ranks anchors by the boxes of a sample."""

    def __init__(
        self,
        table: _Table,
        labels: Int[np.ndarray, "n"],
        sample: Int[np.ndarray, "sampled"],
        threshold: float,
        enough: float,
    ):
        classes, counts = np.unique(labels, return_counts=True)
        self._table, self._threshold, self._enough = table, threshold, enough
        self._class_of = np.searchsorted(classes, labels[sample])
        self._sampled = np.bincount(self._class_of, minlength=len(classes))
        self._shares = counts / counts.sum()
        self._alone = counts >= LEAST_BOXES

    def rank(self, candidate: Anchors) -> tuple:
        """Sort key, lowest is best; rounded, so that all hosts agree."""
        iou = self._table.best(candidate)
        within = np.bincount(self._class_of, iou >= self._threshold, len(self._shares))
        recall = within / self._sampled
        single = np.array([recall @ self._shares, *recall[self._alone]])
        away = abs(math.log2(candidate.scale / _USUAL_SCALE))
        cost = _COST * (math.log2(len(candidate)) + away)
        cost += _LACKING * shortfall(single, self._enough)
        return round(cost - float(iou.mean(dtype=np.float64)), 4), len(candidate)


class _Table:
    """IoU of every box with its best anchor of a size and ratio, computed when first needed."""

    def __init__(
        self, shown: InputBoxes, buckets: Sequence[tuple[int, int]], anchors: Mapping[str, Any]
    ):
        self._boxes = shown.boxes
        self._anchors = dict(anchors)
        self._distances = placed_distances(shown, buckets, anchors)
        self._known: dict[tuple[float, float], Float[np.ndarray, "n"]] = {}

    def best(self, anchors: Anchors) -> Float[np.ndarray, "n"]:
        """IoU of each box with its best anchor, float32."""
        sizes = [anchors.scale * 2**octave for octave in anchors.octaves]
        pairs = itertools.product(sizes, anchors.ratios)
        return np.max([self._single(size, ratio) for size, ratio in pairs], axis=0)

    def _single(self, size: float, ratio: float) -> np.ndarray:
        place = round(24 * math.log2(size)), ratio  # sizes less than 3 % apart share an entry
        if place not in self._known:
            one = {**self._anchors, "scale": size, "octaves": (0.0,), "ratios": (ratio,)}
            iou = np.zeros(len(self._boxes), np.float32)
            for members, far in self._distances:
                iou[members] = best_of_shapes(self._boxes[members], far, level_shapes(one))
            self._known[place] = iou
        return self._known[place]


def _ratios(
    boxes: Float[np.ndarray, "n 4"], turned: bool
) -> tuple[list[tuple[float, ...]], tuple[float, ...]]:
    """Sets of one to three ratios to start from, and all ratios to try.

    They lie half an octave apart, around the median of the boxes.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    logs = np.log2(height / width)
    if turned:
        logs = np.concatenate([logs, -logs])
    # to an eighth: ratios that are nearly symmetric become so
    middle = round(8 * float(np.median(logs))) / 8

    def places(shares: Sequence[float]) -> list[int]:
        return [round(float(q - middle) / _RATIO_STEP) for q in np.quantile(logs, shares)]

    def values(steps: Iterable[int]) -> tuple[float, ...]:
        return tuple(dict.fromkeys(_short(2 ** (middle + n * _RATIO_STEP)) for n in steps))

    low, high = places([0.005, 0.995])
    starts = []
    for count in range(1, MOST_RATIOS + 1):
        at = places([(2 * i + 1) / (2 * count) for i in range(count)])
        for i in range(1, count):
            at[i] = max(at[i], at[i - 1] + 1)
        starts += [values(at), values(np.linspace(low, high, count + 2)[1:-1].round())]
    if turned:
        starts = [_with_ratio(Anchors(1.0, (0.0,), s), 0, s[0], True).ratios for s in starts]
    return list(dict.fromkeys(starts)), values(range(low - 1, high + 2))


def _short(ratio: float) -> float:
    return float(f"{ratio:.3g}")
