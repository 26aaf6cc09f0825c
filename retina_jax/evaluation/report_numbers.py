"""The numbers of an evaluation's report: from ground truth and detections to tables and curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from retina_jax.evaluation.report_errors import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    CORRECT,
    CROWD,
    DUPLICATE,
    IGNORED,
    LOCALISATION,
    MISSED,
    STATES,
    ImageErrors,
)

SIZES = ("small", "medium", "large")
"""COCO's: areas below 32², below 96², and above."""
_TIDE = (
    ("classification", "Cls", CLASSIFICATION), ("localisation", "Loc", LOCALISATION),
    ("both", "Both", BOTH), ("duplicate", "Dupe", DUPLICATE), ("background", "Bkg", BACKGROUND),
)  # fmt: skip
SCORE_BINS = 20
SIZE_EDGES = tuple(2.0 ** (k / 2) for k in range(4, 22))
"""Bin edges of the size histogram: square root of the area, from 4 to 1,448 pixels."""


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """One class of the table; an AP or AR is None without objects."""

    name: str
    objects: int
    """Without crowds."""
    detections: int
    precisions: dict[str, float | None]
    """AP, AP50, AP75, APs, APm, APl and AR, at the largest limit."""


@dataclasses.dataclass(frozen=True)
class ErrorRow:
    """One of TIDE's kinds of error."""

    kind: str
    count: int
    cost: float
    """How much AP at IoU 0.5 would rise without these errors, 0 to 1."""


@dataclasses.dataclass(frozen=True)
class Operating:
    """The score threshold with the best F1 at IoU 0.5, over all classes."""

    threshold: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-12)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The numbers of a report; arrays are NaN where there is no ground truth."""

    classes: list[ClassRow]
    ious: np.ndarray
    """``[10]``: the IoU thresholds of COCO."""
    by_iou: dict[str, np.ndarray]
    """AP at each IoU, ``[10]``: of all objects and of each of `SIZES`."""
    recalls: np.ndarray
    """``[101]``: the recalls of the precision-recall curves."""
    curves: dict[str, np.ndarray]
    """Precision at each recall, mean over classes, ``[101]``: by IoU."""
    class_curves: np.ndarray
    """``[classes, 101]``: precision at IoU 0.5."""
    errors: list[ErrorRow]
    base_ap: float
    """AP at IoU 0.5, to which the costs of errors refer."""
    operating: Operating
    confusion: np.ndarray
    """``[classes + 1, classes + 1]``: objects by their class (rows) and that of the detection
    (columns), above the operating threshold; the last ones are background."""
    reliability: list[tuple[float, float, int]]
    """For each of ten score bins: mean score, share of correct detections, count."""
    calibration_error: float
    """Expected calibration error: mean of |score - share|, weighted by count."""
    scores: np.ndarray
    """``[2, SCORE_BINS]``: correct and false detections by score."""
    sizes: np.ndarray
    """``[3, len(SIZE_EDGES) + 1]``: objects found and not found above the operating threshold, and
    false detections above it, by size."""


def numbers_of(truth: dict[str, Any], errors: Sequence[ImageErrors], evaluation: Any) -> Numbers:
    """All numbers of a report.

    Args:
      truth: a COCO data set.
      errors: `report_errors.errors_of` of the detections.
      evaluation: hotcoco's, from `coco.evaluate_boxes`.
    """
    names = [c["name"] for c in truth["categories"]]
    precision = _of_categories(evaluation.eval["precision"], 2, truth, evaluation)[..., -1]
    recall = _of_categories(evaluation.eval["recall"], 1, truth, evaluation)[..., -1]
    ious = np.asarray(evaluation.params.iouThrs)
    operating = operating_point(errors)
    tide = evaluation.tide_errors()
    matrix = evaluation.confusion_matrix(min_score=operating.threshold)
    calibration = evaluation.calibration(n_bins=10)
    return Numbers(
        classes=_class_rows(names, errors, precision, recall),
        ious=ious,
        by_iou={
            name: mean(precision[:, :, :, area], (1, 2))
            for area, name in enumerate(("all", *SIZES))
        },
        recalls=np.asarray(evaluation.params.recThrs),
        curves={f"IoU {ious[i]:.2f}": mean(precision[i, :, :, 0], 1) for i in (0, 2, 4, 5, 6, 8)},
        class_curves=precision[0, :, :, 0].T,
        errors=_error_rows(errors, tide["delta_ap"]),
        base_ap=float(tide["ap_base"]),
        operating=operating,
        confusion=_ordered(matrix, truth),
        reliability=[
            (float(b["avg_confidence"]), float(b["avg_accuracy"]), int(b["count"]))
            for b in calibration["bins"]
        ],
        calibration_error=float(calibration["ece"]),
        scores=score_histogram(errors),
        sizes=size_histogram(errors, operating.threshold),
    )


def mean(values: np.ndarray, axis: Any = None) -> np.ndarray:
    """Mean of the values that are not NaN; NaN if there are none."""
    there = ~np.isnan(values)
    count = there.sum(axis)
    total = np.where(there, values, 0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def operating_point(errors: Sequence[ImageErrors]) -> Operating:
    """The score threshold with the best F1; 0 without detections or objects."""
    kinds = np.concatenate([e.kinds for e in errors]) if errors else np.zeros(0)
    scores = np.concatenate([e.scores for e in errors]) if errors else np.zeros(0)
    objects = sum(int((e.object_states != CROWD).sum()) for e in errors)
    scores, kinds = scores[kinds != IGNORED], kinds[kinds != IGNORED]
    if not len(scores) or not objects:
        return Operating(0.0, 0.0, 0.0)
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    right = np.cumsum(kinds[order] == CORRECT)
    count = np.arange(1, len(scores) + 1)
    f1 = 2 * right / (count + objects)
    f1[:-1][scores[:-1] == scores[1:]] = -1  # a threshold cannot part equal scores
    best = int(f1.argmax())
    return Operating(
        float(scores[best]), float(right[best] / count[best]), float(right[best] / objects)
    )


def score_histogram(errors: Sequence[ImageErrors]) -> np.ndarray:
    """Counts of correct and of false detections, ``[2, SCORE_BINS]``, over scores from 0 to 1."""
    counts = np.zeros((2, SCORE_BINS), np.int64)
    for image in errors:
        bins = np.minimum((image.scores * SCORE_BINS).astype(int), SCORE_BINS - 1)
        right = image.kinds == CORRECT
        np.add.at(counts[0], bins[right], 1)
        np.add.at(counts[1], bins[~right & (image.kinds != IGNORED)], 1)
    return counts


def size_histogram(errors: Sequence[ImageErrors], threshold: float) -> np.ndarray:
    """Objects found, objects not found and false detections, ``[3, len(SIZE_EDGES) + 1]``.

    By the square root of the box area; detections below ``threshold`` do not count.
    """
    counts = np.zeros((3, len(SIZE_EDGES) + 1), np.int64)
    for image in errors:
        objects = image.object_states != CROWD
        bins = np.searchsorted(SIZE_EDGES, _sides(image.object_boxes), side="right")
        found = image.object_scores >= max(threshold, 1e-12)
        np.add.at(counts[0], bins[objects & found], 1)
        np.add.at(counts[1], bins[objects & ~found], 1)
        false = (image.kinds != CORRECT) & (image.kinds != IGNORED) & (image.scores >= threshold)
        bins = np.searchsorted(SIZE_EDGES, _sides(image.boxes), side="right")
        np.add.at(counts[2], bins[false], 1)
    return counts


def _sides(boxes: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(boxes[:, 2] * boxes[:, 3], 0))


def _of_categories(values: Any, axis: int, truth: dict[str, Any], evaluation: Any) -> np.ndarray:
    """Values of COCOeval with NaN for -1, and classes along ``axis`` in the order of ``truth``."""
    values = np.asarray(values)
    place = {int(i): k for k, i in enumerate(evaluation.params.catIds)}
    values = values.take([place[c["id"]] for c in truth["categories"]], axis)
    return np.where(values < 0, np.nan, values)


def _ordered(matrix: dict[str, Any], truth: dict[str, Any]) -> np.ndarray:
    place = {int(i): k for k, i in enumerate(matrix["cat_ids"])}
    order = [*(place[c["id"]] for c in truth["categories"]), len(place)]
    return np.asarray(matrix["matrix"]).astype(np.int64)[np.ix_(order, order)]


def _class_rows(
    names: list[str], errors: Sequence[ImageErrors], precision: np.ndarray, recall: np.ndarray
) -> list[ClassRow]:
    objects = np.zeros(len(names), np.int64)
    detections = np.zeros(len(names), np.int64)
    for image in errors:
        np.add.at(objects, image.object_labels[image.object_states != CROWD], 1)
        np.add.at(detections, image.labels, 1)
    # [IoU, recall, class, area range]; [IoU, class, area range]
    parts = {
        "AP": precision[..., 0], "AP50": precision[:1, ..., 0], "AP75": precision[5:6, ..., 0],
        "APs": precision[..., 1], "APm": precision[..., 2], "APl": precision[..., 3],
    }  # fmt: skip
    columns = {name: mean(values, (0, 1)) for name, values in parts.items()}
    columns["AR"] = mean(recall[..., 0], 0)
    return [
        ClassRow(
            name, int(objects[k]), int(detections[k]),
            {n: None if np.isnan(v[k]) else float(v[k]) for n, v in columns.items()},
        )
        for k, name in enumerate(names)
    ]  # fmt: skip


def _error_rows(errors: Sequence[ImageErrors], costs: dict[str, float]) -> list[ErrorRow]:
    kinds = np.concatenate([e.kinds for e in errors]) if errors else np.zeros(0, np.int64)
    states = np.concatenate([e.object_states for e in errors]) if errors else kinds
    rows = [ErrorRow(name, int((kinds == k).sum()), float(costs[n])) for name, n, k in _TIDE]
    missed = int((states == MISSED).sum())
    return [*rows, ErrorRow(STATES[MISSED], missed, float(costs["Miss"]))]
