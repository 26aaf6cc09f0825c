"""What is wrong with each detection and each object of an image, in the terms of TIDE.

The kinds of error are those of Bolya et al., *TIDE: A General Toolbox for Identifying Object
Detection Errors* (arXiv:2008.08115), at IoU 0.5 for a match and 0.1 for background.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

MATCH_IOU, BACKGROUND_IOU = 0.5, 0.1
KINDS = (
    "correct", "classification", "localisation", "both", "duplicate", "background", "ignored",
)  # fmt: skip
"""Of a detection; both: wrong class and location; ignored: on a crowd, or beyond the limit."""
CORRECT, CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, IGNORED = range(len(KINDS))
STATES = ("found", "found wrongly", "missed", "crowd")
"""Of an object; found wrongly: by a detection with the wrong class or location."""
FOUND, FOUND_WRONGLY, MISSED, CROWD = range(len(STATES))


@dataclasses.dataclass(frozen=True)
class ImageErrors:
    """The objects and detections of one image; boxes are xywh, in pixels of the image."""

    image_id: int
    object_boxes: np.ndarray
    object_labels: np.ndarray
    """Positions in the list of categories."""
    object_states: np.ndarray
    """Positions in `STATES`."""
    object_scores: np.ndarray
    """Score of the correct detection of the object; 0 without one."""
    boxes: np.ndarray
    """Of detections; highest score first."""
    labels: np.ndarray
    scores: np.ndarray
    kinds: np.ndarray
    """Positions in `KINDS`."""

    @property
    def error(self) -> float:
        """Sum of squares: 1 - score of correct, score of wrong detections; 1 for a missed object.

        Wrong detections with low scores weigh little, so no threshold is needed.
        """
        counted = self.kinds != IGNORED
        right = self.kinds == CORRECT
        missed = (self.object_states != CROWD) & (self.object_scores == 0)
        return float(((self.scores - right)[counted] ** 2).sum() + missed.sum())


def classify(
    overlaps: np.ndarray, same_class: np.ndarray, matched: np.ndarray, found: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Kinds of detections and states of objects of one image, without crowds.

    Args:
      overlaps: IoU of detections and objects, ``[d, m]``.
      same_class: whether both have the same class, ``[d, m]``.
      matched: whether a detection is correct, ``[d]``.
      found: whether an object has a correct detection, ``[m]``.

    Returns: positions in `KINDS`, ``[d]``, and in `STATES`, ``[m]``.
    """
    count, objects = overlaps.shape
    if not objects:
        kinds = np.where(matched, CORRECT, BACKGROUND)
        return kinds, np.zeros(0, np.int64)
    of_class = np.where(same_class, overlaps, -1.0)
    of_others = np.where(same_class, -1.0, overlaps)
    own, other = of_class.max(1, initial=-1.0), of_others.max(1, initial=-1.0)
    wrong_place = (own >= BACKGROUND_IOU) & (own < MATCH_IOU)
    wrong_class = other >= MATCH_IOU
    kinds = np.select(
        [matched, wrong_place, wrong_class, own >= MATCH_IOU,
         np.maximum(own, other) <= BACKGROUND_IOU],
        [CORRECT, LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND],
        BOTH,
    )  # fmt: skip
    states = np.where(found, FOUND, MISSED)
    rows = np.arange(count)
    for kind, iou in ((LOCALISATION, of_class), (CLASSIFICATION, of_others)):
        states[[m for m in iou.argmax(1)[rows[kinds == kind]] if not found[m]]] = FOUND_WRONGLY
    return kinds, states


def errors_of(
    truth: dict[str, Any], detections: list[dict[str, Any]], evaluation: Any
) -> list[ImageErrors]:
    """Classifies all detections and objects, by image, in the order of ``truth``.

    ``evaluation`` is hotcoco's, from `coco.evaluate_boxes`; its matches at IoU 0.5 are used.
    """
    matches = evaluation.image_diagnostics(iou_thr=MATCH_IOU)
    status = {int(i): value for i, value in matches["dt_status"].items()}
    match = {int(i): int(j) for i, j in matches["dt_match"].items()}
    label_of = {c["id"]: k for k, c in enumerate(truth["categories"])}
    objects: dict[int, list] = {}
    for annotation in truth["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    found: dict[int, list] = {}
    for number, detection in enumerate(detections, 1):
        found.setdefault(detection["image_id"], []).append((number, detection))
    return [
        _errors_of_image(
            image["id"], objects.get(image["id"], []), found.get(image["id"], []), label_of,
            status, match,
        )
        for image in truth["images"]
    ]  # fmt: skip


def _errors_of_image(
    image_id: int,
    objects: list[dict[str, Any]],
    detections: list[tuple[int, dict[str, Any]]],
    label_of: dict[int, int],
    status: dict[int, str],
    match: dict[int, int],
) -> ImageErrors:
    from pycocotools import mask

    detections = sorted(detections, key=lambda numbered: -numbered[1]["score"])
    numbers = [number for number, _ in detections]
    boxes = _boxes([d["bbox"] for _, d in detections])
    labels = np.array([label_of[d["category_id"]] for _, d in detections], np.int64)
    scores = np.array([d["score"] for _, d in detections], np.float64)
    object_boxes = _boxes([o["bbox"] for o in objects])
    object_labels = np.array([label_of[o["category_id"]] for o in objects], np.int64)
    crowd = np.array([bool(o.get("iscrowd")) for o in objects], bool)
    score_of = {
        match[number]: score
        for number, score in zip(numbers, scores, strict=True)
        if number in match
    }
    object_scores = np.array([score_of.get(o["id"], 0.0) for o in objects], np.float64)
    found = np.array([o["id"] in score_of for o in objects], bool)

    counted = np.array([number in status for number in numbers], bool)
    kinds = np.full(len(numbers), IGNORED)
    states = np.full(len(objects), CROWD)
    overlaps = np.zeros((counted.sum(), (~crowd).sum()))
    if overlaps.size:
        plain = object_boxes[~crowd]
        overlaps = np.asarray(mask.iou(boxes[counted], plain, [0] * len(plain)))
    kinds[counted], states[~crowd] = classify(
        overlaps,
        labels[counted, None] == object_labels[None, ~crowd],
        np.array([status.get(number) == "tp" for number in numbers], bool)[counted],
        found[~crowd],
    )
    return ImageErrors(
        image_id, object_boxes, object_labels, states, object_scores, boxes, labels, scores, kinds
    )


def _boxes(boxes: list) -> np.ndarray:
    return np.array(boxes, np.float64).reshape(-1, 4)
