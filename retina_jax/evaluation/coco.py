"""COCO box metrics with hotcoco or pycocotools, in the data set's category ids."""

from __future__ import annotations

import collections
import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from retina_jax.data.data_set import Split
from retina_jax.ops.boxes import xyxy_to_coco_xywh
from retina_jax.types import Detections

LIMITS = (1, 10, 100)
"""COCO's default limits of detections per class and image: one AR per limit; AP uses the last."""


def metric_names(limits: Sequence[int] = LIMITS) -> tuple[str, ...]:
    """Names of the twelve COCO metrics, in COCO's order."""
    recalls = (f"AR{limit}" for limit in limits)
    return ("AP", "AP50", "AP75", "APs", "APm", "APl", *recalls, "ARs", "ARm", "ARl")


METRICS = metric_names()


def ground_truth(split: Split) -> dict[str, Any]:
    """The split as a COCO data set: xywh in pixels of the original images.

    Reads no image if the index has the annotations.
    """
    images, annotations = [], []
    for row in range(len(split)):
        example = split.annotations(row)
        height, width = (int(v) for v in split.sizes[row])
        images.append({"id": example.image_id, "height": height, "width": width})
        rows = zip(
            xyxy_to_coco_xywh(example.boxes).round(3).tolist(),
            example.labels.tolist(),
            example.is_crowd.tolist(),
            example.areas.tolist(),
            strict=True,
        )
        for box, label, crowd, area in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": example.image_id,
                    "category_id": split.category_ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    return {"images": images, "annotations": annotations, "categories": categories(split)}


def categories(split: Split) -> list[dict[str, Any]]:
    """COCO's list of categories."""
    pairs = zip(split.category_ids, split.class_names, strict=True)
    return [{"id": int(i), "name": name} for i, name in pairs]


def results(
    image_id: int, detections: Detections, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """COCO results of one image; boxes are in pixels of the original image."""
    boxes = xyxy_to_coco_xywh(detections.boxes.astype(np.float64)).round(3)
    return [
        {
            "image_id": image_id,
            "category_id": int(category_ids[label]),
            "bbox": box,
            "score": round(score, 6),
        }
        for box, score, label in zip(
            boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
        )
    ]


def score(
    truth: dict[str, Any],
    detections: list[dict[str, Any]],
    engine: str = "hotcoco",
    limits: Sequence[int] = LIMITS,
) -> dict[str, Any]:
    """`summarize` of `evaluate_boxes`."""
    return summarize(evaluate_boxes(truth, detections, engine, limits), truth, limits)


def evaluate_boxes(
    truth: dict[str, Any],
    detections: list[dict[str, Any]],
    engine: str = "hotcoco",
    limits: Sequence[int] = LIMITS,
) -> Any:
    """The engine's COCOeval, evaluated and accumulated; detections are numbered from 1.

    Args:
      truth: a COCO data set, as `ground_truth` returns it.
      detections: COCO results.
      engine: "hotcoco", or "pycocotools", the reference; both give the same numbers.
      limits: largest numbers of detections per class and image to count, ascending.
    """
    if engine == "hotcoco":
        from hotcoco import COCO, COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    numbered = [
        dict(d, id=i, area=d["bbox"][2] * d["bbox"][3], iscrowd=0)
        for i, d in enumerate(detections, 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints progress
        data_sets = []
        for annotations in (truth["annotations"], numbered):
            coco = COCO()
            coco.dataset = {**truth, "annotations": annotations}
            coco.createIndex()
            data_sets.append(coco)
        evaluation = COCOeval(*data_sets, "bbox")
        parameters = evaluation.params
        parameters.maxDets = list(limits)
        evaluation.params = parameters
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def summarize(
    evaluation: Any, truth: dict[str, Any], limits: Sequence[int] = LIMITS
) -> dict[str, Any]:
    """The metrics in `metric_names`, and ``per_class`` and ``per_class_AP50`` (class name to AP).

    A metric without ground truth is None. ``evaluation`` is a result of `evaluate_boxes` with the
    same ``truth`` and ``limits``.
    """
    # [IoU, recall, class, area range, limit]; [IoU, class, area range, limit]
    precisions, recalls = (np.asarray(evaluation.eval[n]) for n in ("precision", "recall"))
    # summarize() only supports the limit 100
    every = [
        *(precisions[some, :, :, 0, -1] for some in (slice(None), slice(0, 1), slice(5, 6))),
        *(precisions[..., area, -1] for area in (1, 2, 3)),
        *(recalls[..., 0, limit] for limit in range(3)),
        *(recalls[..., area, -1] for area in (1, 2, 3)),
    ]
    metrics: dict[str, Any] = {
        name: _mean_where_defined(values)
        for name, values in zip(metric_names(limits), every, strict=True)
    }
    precision = precisions[:, :, :, 0, -1]
    names = {c["id"]: c["name"] for c in truth["categories"]}
    for name, values in (("per_class", precision), ("per_class_AP50", precision[:1])):
        metrics[name] = {
            names[category_id]: _mean_where_defined(values[:, :, k])
            for k, category_id in enumerate(evaluation.params.catIds)
        }
    return metrics


def beyond_limit(truth: dict[str, Any], limit: int) -> tuple[int, int]:
    """Number of images with more than ``limit`` objects of a class, and the largest such count."""
    pairs = collections.Counter(
        (a["image_id"], a["category_id"]) for a in truth["annotations"] if not a["iscrowd"]
    )
    images = {image_id for (image_id, _), count in pairs.items() if count > limit}
    return len(images), max(pairs.values(), default=0)


def _mean_where_defined(precision: np.ndarray) -> float | None:
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None
