"""COCO's matching and average precision for weighted images, compiled with Numba.

Equals pycocotools' COCOeval (evaluateImg and accumulate) bit for bit; with weights, images can be
resampled without matching them again.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from retina_jax.evaluation.nms import compiled

IOUS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = ("all", "small", "medium", "large")
_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]], np.float64)
_FALSE, _TRUE, _IGNORED = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Matches:
    """Detections of a data set by class, highest score first, and how they match."""

    images: np.ndarray
    """``[d]``: position of the image of each detection."""
    first: np.ndarray
    """``[classes + 1]``: where the detections of each class begin."""
    outcomes: np.ndarray
    """``[4, 10, d]``: true, false or ignored, by area range and IoU."""
    objects: np.ndarray
    """``[4, classes, images]``: number of objects that count, by area range."""


def match(truth: dict[str, Any], detections: list[dict[str, Any]], limit: int = 100) -> Matches:
    """Matches COCO results to a COCO data set; ``limit``: detections per class and image."""
    image_of = {image["id"]: i for i, image in enumerate(truth["images"])}
    class_of = {c["id"]: k for k, c in enumerate(truth["categories"])}
    classes, images = len(class_of), len(image_of)

    def columns(entries: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = len(entries)
        return (
            np.fromiter((class_of[e["category_id"]] for e in entries), np.int64, count),
            np.fromiter((image_of[e["image_id"]] for e in entries), np.int64, count),
            np.array([e["bbox"] for e in entries], np.float64).reshape(-1, 4),
        )

    labels, places, boxes = columns(truth["annotations"])
    areas = np.array([a["area"] for a in truth["annotations"]], np.float64)
    crowds = np.array([bool(a.get("iscrowd")) for a in truth["annotations"]], bool)
    order = np.lexsort((places, labels))
    labels, places, boxes = labels[order], places[order], boxes[order]
    areas, crowds = areas[order], crowds[order]
    first_object = np.searchsorted(labels * images + places, np.arange(classes * images + 1))

    own, at, found = columns(detections)
    scores = np.array([d["score"] for d in detections], np.float64)
    order = np.lexsort((-scores, at, own))  # by class, then image, then score; ties by position
    group = (own * images + at)[order]
    rank = np.arange(len(group)) - np.searchsorted(group, group)
    order, group = order[rank < limit], group[rank < limit]
    first = np.searchsorted(group, np.arange(classes * images + 1))
    outcomes = _match(
        found[order],
        first,
        boxes,
        areas,
        crowds,
        first_object,
        _RANGES,
        np.minimum(IOUS, 1 - 1e-10),
    )
    by_score = np.lexsort((-scores[order], own[order]))  # ties by image, as in COCO
    outside = (areas[None] < _RANGES[:, :1]) | (areas[None] > _RANGES[:, 1:])
    objects = np.stack(
        [
            np.bincount((labels * images + places)[~crowds & ~out], minlength=classes * images)
            for out in outside
        ]
    ).reshape(len(AREAS), classes, images)
    return Matches(
        images=at[order][by_score],
        first=np.searchsorted(own[order][by_score], np.arange(classes + 1)),
        outcomes=np.ascontiguousarray(outcomes[:, :, by_score]),
        objects=objects,
    )


def average_precisions(matches: Matches, weights: np.ndarray, label: int) -> np.ndarray:
    """AP of a class for each weighting of the images, ``[n, 4, 10]``, by area range and IoU.

    Args:
      weights: how often each image counts, integers ``[n, images]``; 1 gives COCO's AP.

    NaN where no object counts.
    """
    part = slice(matches.first[label], matches.first[label + 1])
    objects = matches.objects[:, label].astype(np.int64) @ weights.T.astype(np.int64)
    return _precisions(
        np.ascontiguousarray(matches.outcomes[:, :, part]), matches.images[part],
        np.ascontiguousarray(weights, np.int64), objects, _RECALLS,
    )  # fmt: skip


@compiled
def _match(found, first, boxes, areas, crowds, first_object, ranges, ious):
    outcomes = np.zeros((len(ranges), len(ious), len(found)), np.uint8)
    for group in range(len(first) - 1):
        start, end = first[group], first[group + 1]
        low, high = first_object[group], first_object[group + 1]
        if start == end:
            continue
        count = high - low
        overlaps = np.zeros((end - start, count))
        for d in range(start, end):
            for g in range(low, high):
                width = min(found[d, 2] + found[d, 0], boxes[g, 2] + boxes[g, 0])
                width -= max(found[d, 0], boxes[g, 0])
                height = min(found[d, 3] + found[d, 1], boxes[g, 3] + boxes[g, 1])
                height -= max(found[d, 1], boxes[g, 1])
                if width > 0 and height > 0:
                    shared = width * height
                    union = found[d, 2] * found[d, 3]
                    if not crowds[g]:
                        union += boxes[g, 2] * boxes[g, 3] - shared
                    overlaps[d - start, g - low] = shared / union
        for a in range(len(ranges)):
            ignored = np.zeros(count, np.bool_)
            for g in range(count):
                area = areas[low + g]
                ignored[g] = crowds[low + g] or area < ranges[a, 0] or area > ranges[a, 1]
            order = np.argsort(ignored, kind="mergesort")  # objects that count come first
            for t in range(len(ious)):
                taken = np.zeros(count, np.bool_)
                for d in range(start, end):
                    best, chosen = ious[t], -1
                    for g in order:
                        if taken[g] and not crowds[low + g]:
                            continue
                        if chosen >= 0 and not ignored[chosen] and ignored[g]:
                            break
                        if overlaps[d - start, g] < best:
                            continue
                        best, chosen = overlaps[d - start, g], g
                    if chosen >= 0:
                        taken[chosen] = True
                        outcomes[a, t, d] = _IGNORED if ignored[chosen] else _TRUE
                    else:
                        size = found[d, 2] * found[d, 3]
                        if size < ranges[a, 0] or size > ranges[a, 1]:
                            outcomes[a, t, d] = _IGNORED
    return outcomes


@compiled
def _precisions(outcomes, images, weights, objects, recalls):
    areas, ious, count = outcomes.shape
    result = np.full((len(weights), areas, ious), np.nan)
    true = np.empty(count, np.int64)
    seen = np.empty(count, np.int64)
    for n in range(len(weights)):
        for a in range(areas):
            total = objects[a, n]
            if total == 0:
                continue
            for t in range(ious):
                used, right, every = 0, 0, 0
                for d in range(count):
                    weight = weights[n, images[d]]
                    outcome = outcomes[a, t, d]
                    if weight == 0 or outcome == _IGNORED:
                        continue
                    every += weight
                    if outcome == _TRUE:
                        right += weight
                    true[used], seen[used] = right, every
                    used += 1
                # backwards: the envelope of precision, read where each recall is first reached
                r, envelope, total_precision = len(recalls) - 1, 0.0, 0.0
                while r >= 0 and (used == 0 or recalls[r] > true[used - 1] / total):
                    r -= 1
                for i in range(used - 1, -1, -1):
                    envelope = max(envelope, true[i] / (seen[i] + 2.220446049250313e-16))
                    while r >= 0 and (i == 0 or recalls[r] > true[i - 1] / total):
                        total_precision += envelope
                        r -= 1
                result[n, a, t] = total_precision / len(recalls)
    return result
