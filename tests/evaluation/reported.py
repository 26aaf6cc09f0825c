"""An evaluation to report: the shapes, and detections of every kind of error."""

import dataclasses
import functools

import numpy as np

from retina_jax.evaluation import coco
from retina_jax.evaluation.report_errors import errors_of

HOSTILE = '<script>document.title="broken"</script>"\'&'
"""A class and file name of somebody else's data set."""


@dataclasses.dataclass(frozen=True)
class Reported:
    split: object
    truth: dict
    detections: list
    evaluation: object
    metrics: dict

    @functools.cached_property
    def errors(self):
        return errors_of(self.truth, self.detections, self.evaluation)


class Nameless:
    """Records without the names of their files, so that the index may have others."""

    def __init__(self, records):
        self._records = records

    def __len__(self):
        return len(self._records)

    def __getitem__(self, row):
        return {k: v for k, v in self._records[row].items() if k != "image/filename"}


def reported(split):
    """Made-up detections of a split, whose first class and file names are hostile."""
    names = (HOSTILE, *split.class_names[1:])
    files = np.array([f"{HOSTILE} {i}.png" for i in range(len(split))])
    records = Nameless(split._records)
    split = dataclasses.replace(split, class_names=names, file_names=files, _records=records)
    truth = coco.ground_truth(split)
    rng = np.random.default_rng(0)
    ids = [c["id"] for c in truth["categories"]]
    detections = []

    def add(image_id, category_id, box, score):
        box = [round(float(v), 2) for v in box]
        result = {"image_id": image_id, "category_id": int(category_id), "bbox": box}
        detections.append(result | {"score": round(float(score), 4)})

    for annotation in truth["annotations"]:
        for _ in range(rng.integers(0, 3)):
            box = np.array(annotation["bbox"])
            box[:2] += rng.normal(0, 0.12, 2) * box[2:]
            other = rng.random() < 0.2
            guess = rng.choice(ids) if other else annotation["category_id"]
            add(annotation["image_id"], guess, box, rng.beta(3, 2))
    for image in truth["images"]:
        add(image["id"], rng.choice(ids), rng.uniform(5, 60, 4), rng.beta(1.2, 6))
    evaluation = coco.evaluate_boxes(truth, detections)
    metrics = coco.summarize(evaluation, truth)
    metrics |= {"step": 400, "images": len(split), "detections": len(detections)}
    return Reported(split, truth, detections, evaluation, metrics)
