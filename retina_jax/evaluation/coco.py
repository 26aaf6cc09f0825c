"""COCO's metrics over boxes, by hotcoco or by pycocotools, in the data set's own ids."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from retina_jax.data.data_set import Split
from retina_jax.ops.boxes import xyxy_to_coco_xywh
from retina_jax.types import Detections

METRICS = (
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"
)  # fmt: skip
"""Names of COCO's twelve numbers, in its order."""


def ground_truth(split: Split) -> dict[str, Any]:
    """The split as a COCO data set: xywh in pixels of the original images.

    No image is read where the index has the annotations.
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
    """COCO's list of classes."""
    pairs = zip(split.category_ids, split.class_names, strict=True)
    return [{"id": int(i), "name": name} for i, name in pairs]


def results(
    image_id: int, detections: Detections, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """COCO's results of one image, whose boxes are in pixels of the original."""
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
    truth: dict[str, Any], detections: list[dict[str, Any]], engine: str = "hotcoco"
) -> dict[str, Any]:
    """`METRICS` beside ``per_class`` and ``per_class_AP50`` (class name to AP); -1: no boxes.

    Args:
      truth: a COCO data set, as `ground_truth` gives it.
      detections: COCO results.
      engine: "hotcoco" or "pycocotools", its arbiter; both give the same numbers.
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
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
        data_sets = []
        for annotations in (truth["annotations"], numbered):
            coco = COCO()
            coco.dataset = {**truth, "annotations": annotations}
            coco.createIndex()
            data_sets.append(coco)
        evaluation = COCOeval(*data_sets, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics: dict[str, Any] = dict(zip(METRICS, map(float, evaluation.stats), strict=True))
    # [IoU, recall, class, area range, most detections]
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    names = {c["id"]: c["name"] for c in truth["categories"]}
    for name, values in (("per_class", precision), ("per_class_AP50", precision[:1])):
        metrics[name] = {
            names[category_id]: _mean_where_defined(values[:, :, k])
            for k, category_id in enumerate(evaluation.params.catIds)
        }
    return metrics


def _mean_where_defined(precision: np.ndarray) -> float:
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else -1.0
