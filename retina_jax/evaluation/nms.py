"""Class-wise non-maximum suppression on the host, compiled with Numba; releases the GIL."""

from __future__ import annotations

import numba
import numpy as np

from retina_jax.types import Candidates, Detections


def compiled(function):
    """Compiles with Numba, with a cache on disk if a folder for it is writable."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "no locator available": neither package nor home is writable
        return numba.njit(nogil=True)(function)


@compiled
def _keep(boxes, labels, order, iou_threshold, max_detections):
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
            if labels[j] != labels[i]:
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
) -> np.ndarray:
    """Rows to keep, highest score first; int64.

    Greedy by score (ties by row): a box is dropped if its IoU with a kept box of its class exceeds
    ``iou_threshold``. Args: xyxy ``[k, 4]``, scores ``[k]`` and labels ``[k]``. Stops after
    ``max_detections`` boxes of all classes, because later boxes have lower scores.
    """
    order = np.argsort(-scores, kind="stable")
    return _keep(boxes.astype(np.float64), labels, order, iou_threshold, max_detections)


def suppress(candidates: Candidates, iou_threshold: float, max_detections: int) -> Detections:
    """NMS over the candidates of one image; a score of 0 marks padding."""
    alive = np.flatnonzero(candidates.scores > 0)
    boxes, scores, labels = (
        x[alive] for x in (candidates.boxes, candidates.scores, candidates.labels)
    )
    kept = class_wise_nms(boxes, scores, labels, iou_threshold, max_detections)
    return Detections(boxes=boxes[kept], scores=scores[kept], labels=labels[kept])


def clip_to_image(detections: Detections, height: int, width: int) -> Detections:
    """Clips boxes to the image and drops boxes without area (Detectron2)."""
    boxes = np.clip(detections.boxes, 0, np.array([width, height, width, height], np.float32))
    there = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    return Detections(
        boxes=boxes[there], scores=detections.scores[there], labels=detections.labels[there]
    )
