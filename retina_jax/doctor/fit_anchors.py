"""Chooses anchor scale, octaves and ratios for the boxes of a data set.

The IoU of every box with its best anchor of each size and ratio is computed once, with the exact
arithmetic of `anchor_recall`; a set of anchors is then the maximum over its members.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

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
"""IoU, or recall, that twice the anchors must add; so must a scale of half or twice the usual."""
_USUAL_SCALE = 4.0  # the pyramid's levels are made for objects of 4 to 8 strides
_SCALES = tuple(float(f"{_USUAL_SCALE * 2 ** (n / 12):.3g}") for n in range(-36, 13))
_RATIO_STEP = 0.5  # log2; a box whose ratio is off by a quarter of an octave keeps an IoU of 0.84
_SAMPLE = 6000
_MARGIN = 0.005  # of the recall on a sample


@dataclasses.dataclass(frozen=True)
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
    kept: Sequence[str] = (),
    turned: bool = False,
) -> Anchors:
    """The anchors that match `ENOUGH` boxes at IoU ``threshold``, closely and with few shapes.

    Among the sets that match enough of all boxes and of every class with `LEAST_BOXES`, takes the
    one with the best mean IoU of a box with its best anchor, less 0.03 for every doubling of the
    number of anchors and for every factor of two between the scale and 4. If no set matches enough:
    the one with the best sum of the lowest and the mean recall of the classes, at the same price.

    Args:
      shown: boxes at the network input, all with area; at least one.
      labels: class of each box.
      anchors: the config's group; its other fields apply to every candidate.
      kept: of scale, octaves and ratios, the names that stay as they are in ``anchors``.
      turned: images also appear turned by 90°, so ratios come with their inverse.
    """
    sample = _sampled(labels)
    enough = ENOUGH + (_MARGIN if len(sample) < len(labels) else 0.0)
    boxes = InputBoxes(shown.boxes[sample], shown.bucket[sample])
    table = _Table(boxes, buckets, anchors)
    scales = (anchors["scale"],) if "scale" in kept else _SCALES
    octaves = (tuple(anchors["octaves"]),) if "octaves" in kept else OCTAVES
    ratios = [tuple(anchors["ratios"])]
    if "ratios" not in kept:
        ratios = _ratio_sets(boxes.boxes, turned)
    groups, shares = _groups(labels[sample], labels)
    best, best_rank = None, None
    for scale, octave in itertools.product(scales, octaves):
        by_ratio = {r: table.best(scale, octave, r) for r in dict.fromkeys(sum(ratios, ()))}
        iou = np.stack([np.max([by_ratio[r] for r in chosen], axis=0) for chosen in ratios])
        recalls = (iou >= threshold).astype(np.float32) @ groups / groups.sum(axis=0)
        for chosen, mean, recall in zip(ratios, iou.mean(axis=1), recalls, strict=True):
            candidate = Anchors(scale, octave, chosen)
            rank = _rank(candidate, float(mean), recall, shares, enough)
            if best_rank is None or rank < best_rank:
                best, best_rank = candidate, rank
    return best


def recalls(
    iou: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"], threshold: float
) -> tuple[float, dict[int, float]]:
    """Share of boxes with an IoU of ``threshold`` or more: of all, and by class if not rare."""
    within = iou >= threshold
    groups = {int(label): labels == label for label in np.unique(labels)}
    return float(within.mean()), group_recall(within, groups, LEAST_BOXES)


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


def _groups(
    sampled: np.ndarray, labels: np.ndarray
) -> tuple[Float[np.ndarray, "n classes"], Float[np.ndarray, "classes"]]:
    """Membership of the sampled boxes in each class, and the share of each class among all.

    A share is negative if the class has too few boxes to be looked at on its own.
    """
    classes, counts = np.unique(labels, return_counts=True)
    shares = np.where(counts < LEAST_BOXES, -1.0, 1.0) * counts / counts.sum()
    return (sampled[:, None] == classes).astype(np.float32), shares


def _rank(
    candidate: Anchors, mean_iou: float, recall: np.ndarray, shares: np.ndarray, enough: float
) -> tuple:
    """Sort key, lowest is best; rounded, so that all hosts agree."""
    cost = _COST * (math.log2(len(candidate)) + abs(math.log2(candidate.scale / _USUAL_SCALE)))
    overall = float(recall @ np.abs(shares))
    single = [overall, *recall[shares > 0]]
    lowest = float(min(single))
    if round(lowest, 6) >= enough:
        return 0, round(cost - mean_iou, 4), len(candidate)
    return 1, round(cost - lowest - float(np.mean(single)), 4), len(candidate), round(-mean_iou, 4)


class _Table:
    """IoU of every box with its best anchor of a size and ratio, computed when first needed."""

    def __init__(
        self, shown: InputBoxes, buckets: Sequence[tuple[int, int]], anchors: Mapping[str, Any]
    ):
        self._boxes = shown.boxes
        self._anchors = dict(anchors)
        self._distances = placed_distances(shown, buckets, anchors)
        self._known: dict[tuple[float, float], Float[np.ndarray, "n"]] = {}

    def best(self, scale: float, octaves: Sequence[float], ratio: float) -> np.ndarray:
        """``[n]`` float32, for the sizes of all ``octaves`` on all levels."""
        return np.max([self._single(scale * 2**octave, ratio) for octave in octaves], axis=0)

    def _single(self, size: float, ratio: float) -> np.ndarray:
        place = round(24 * math.log2(size)), ratio  # sizes less than 3 % apart share an entry
        if place not in self._known:
            one = {**self._anchors, "scale": size, "octaves": (0.0,), "ratios": (ratio,)}
            iou = np.zeros(len(self._boxes), np.float32)
            for members, far in self._distances:
                iou[members] = best_of_shapes(self._boxes[members], far, level_shapes(one))
            self._known[place] = iou
        return self._known[place]


def _ratio_sets(boxes: Float[np.ndarray, "n 4"], turned: bool) -> list[tuple[float, ...]]:
    """Sets of up to three ratios that lie half an octave apart, around the median of the boxes."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    logs = np.log2(height / width)
    if turned:
        logs = np.concatenate([logs, -logs])
    # to an eighth: a set that is nearly symmetric becomes so
    middle = round(8 * float(np.median(logs))) / 8
    low, high = np.quantile(logs, [0.005, 0.995]) - middle
    first, last = math.floor(round(low / _RATIO_STEP, 6)), math.ceil(round(high / _RATIO_STEP, 6))
    ratios = [middle + n * _RATIO_STEP for n in range(first, last + 1)]
    sets = itertools.chain.from_iterable(
        itertools.combinations(ratios, count) for count in range(1, MOST_RATIOS + 1)
    )
    if turned:
        sets = (chosen for chosen in sets if set(chosen) == {-r for r in chosen})
    return [tuple(float(f"{2.0**r:.3g}") for r in chosen) for chosen in sets]
