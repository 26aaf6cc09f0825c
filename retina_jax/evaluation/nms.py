"""Non-maximum suppression (NMS) on the host, hard or soft, compiled with Numba.

Releases the GIL.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numba
import numpy as np

from retina_jax.ops.nms import SLACK
from retina_jax.types import Candidates, Detections


@dataclasses.dataclass(frozen=True)
class Rule:
    """How NMS treats overlapping boxes: the fields of ``config.eval``."""

    iou: float
    """IoU above which hard NMS drops a box, and linear soft-NMS lowers its score."""
    most: int
    """Largest number of boxes to keep."""
    soft: str = ""
    """Soft-NMS, "gaussian" or "linear"; empty: hard NMS."""
    sigma: float = 0.5
    """Sigma of Gaussian soft-NMS."""
    agnostic: bool = False
    """Whether boxes of different classes suppress each other."""
    threshold: float = 0.0
    """Soft-NMS drops boxes whose score falls to this value or below."""

    @classmethod
    def of(cls, options: Any) -> Rule:
        """The rule of a config's group ``eval``."""
        return cls(
            options.nms_iou,
            options.max_detections,
            options.soft_nms if options.nms == "soft" else "",
            options.soft_sigma,
            options.class_agnostic,
            options.score_threshold,
        )


def compiled(function):
    """Compiles with Numba, with a cache on disk if a folder for it is writable."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "no locator available": neither package nor home is writable
        return numba.njit(nogil=True)(function)


@compiled
def _keep(boxes, labels, groups, order, iou_threshold, max_detections):
    kept = np.empty(min(max_detections, len(order)), np.int64)
    count = 0
    for i in order:
        if count == len(kept):
            break
        x1, y1, x2, y2 = boxes[i]
        own_area = (x2 - x1) * (y2 - y1)
        alive = True
        for k in range(count):
            j = kept[k]
            if labels[j] != labels[i] or groups[j] == groups[i]:
                continue
            width = min(x2, boxes[j, 2]) - max(x1, boxes[j, 0])
            height = min(y2, boxes[j, 3]) - max(y1, boxes[j, 1])
            if width <= 0 or height <= 0:
                continue
            shared = width * height
            other_area = (boxes[j, 2] - boxes[j, 0]) * (boxes[j, 3] - boxes[j, 1])
            if shared > iou_threshold * (own_area + other_area - shared):
                alive = False
                break
        if alive:
            kept[count] = i
            count += 1
    return kept[:count]


def class_wise_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    iou_threshold: float,
    max_detections: int,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Rows to keep, highest score first; int64.

    Greedy by score (ties by row): a box is dropped if its IoU with a kept box of its class exceeds
    ``iou_threshold`` by more than rounding (`ops.nms.SLACK`). Args: xyxy ``[k, 4]``, scores ``[k]``
    and labels ``[k]``. Stops after ``max_detections`` boxes of all classes, because later boxes
    have lower scores. Boxes of the same group, if there are ``groups [k]``, do not drop each other.
    """
    order = np.argsort(-scores, kind="stable")
    groups = np.arange(len(boxes)) if groups is None else groups
    limit = iou_threshold * (1 + SLACK)
    return _keep(boxes.astype(np.float64), labels, groups, order, limit, max_detections)


@compiled
def _soften(boxes, scores, labels, gaussian, sigma, iou_threshold, threshold, most):
    kept = np.empty(min(most, len(scores)), np.int64)
    count = 0
    while count < len(kept):
        i = np.argmax(scores)  # the first of equal ones
        if scores[i] <= threshold:
            break
        kept[count] = i
        count += 1
        x1, y1, x2, y2 = boxes[i]
        own_area = (x2 - x1) * (y2 - y1)
        for j in range(len(scores)):
            if labels[j] != labels[i] or scores[j] <= threshold or j == i:
                continue
            width = min(x2, boxes[j, 2]) - max(x1, boxes[j, 0])
            height = min(y2, boxes[j, 3]) - max(y1, boxes[j, 1])
            if width <= 0 or height <= 0:
                continue
            shared = width * height
            other_area = (boxes[j, 2] - boxes[j, 0]) * (boxes[j, 3] - boxes[j, 1])
            iou = shared / (own_area + other_area - shared)
            if gaussian:
                scores[j] *= np.exp(-iou * iou / sigma)
            elif iou > iou_threshold:
                scores[j] *= 1 - iou
        scores[i] = -scores[i]  # taken; its score is the absolute value
    return kept[:count]


def soft_nms(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, rule: Rule
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to keep, int64, and their lowered scores, highest first (arXiv:1704.04503).

    Takes the box with the highest score (ties by row), and multiplies the scores of the boxes of
    its class by ``exp(-IoU² / sigma)``, or for "linear" by ``1 - IoU`` where the IoU
    exceeds ``rule.iou``; then the box with the highest remaining score, and so on.
    """
    lowered = scores.astype(np.float64)
    kept = _soften(
        boxes.astype(np.float64),
        lowered,
        labels,
        rule.soft == "gaussian",
        rule.sigma,
        rule.iou,
        rule.threshold,
        rule.most,
    )
    return kept, np.abs(lowered[kept]).astype(scores.dtype)


def suppress(candidates: Candidates, rule: Rule) -> Detections:
    """NMS over the candidates of one image; a score of 0 marks padding."""
    alive = np.flatnonzero(candidates.scores > 0)
    boxes, scores, labels = (
        x[alive] for x in (candidates.boxes, candidates.scores, candidates.labels)
    )
    of_rule = np.zeros_like(labels) if rule.agnostic else labels
    if rule.soft:
        kept, scores_kept = soft_nms(boxes, scores, of_rule, rule)
    else:
        kept = class_wise_nms(boxes, scores, of_rule, rule.iou, rule.most)
        scores_kept = scores[kept]
    return Detections(boxes=boxes[kept], scores=scores_kept, labels=labels[kept])


def without_padding(kept: Candidates) -> Detections:
    """The detections of one image that the device's NMS kept; a score of 0 marks padding."""
    there = kept.scores > 0
    return Detections(boxes=kept.boxes[there], scores=kept.scores[there], labels=kept.labels[there])


def clip_to_image(detections: Detections, height: int, width: int) -> Detections:
    """Clips boxes to the image and drops boxes without area (Detectron2)."""
    boxes = np.clip(detections.boxes, 0, np.array([width, height, width, height], np.float32))
    there = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    return Detections(
        boxes=boxes[there], scores=detections.scores[there], labels=detections.labels[there]
    )
