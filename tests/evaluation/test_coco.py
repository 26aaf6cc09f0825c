"""COCO metrics: both engines the same; ids, frames and extremes."""

import json

import numpy as np
import pytest

from retina_jax.data.data_set import open_split
from retina_jax.evaluation import coco
from retina_jax.types import Detections

ENGINES = ("hotcoco", "pycocotools")


def random_case(seed):
    """Noisy detections of a data set with gaps in its ids, crowds and empty images."""
    rng = np.random.default_rng(seed)
    ids = (1, 3, 7, 90)
    truth = {"images": [], "annotations": [], "categories": [
        {"id": i, "name": f"class {i}"} for i in ids
    ]}  # fmt: skip
    detections = []
    for image_id in range(5, 45):
        truth["images"].append({"id": image_id, "height": 400, "width": 500})
        for _ in range(rng.integers(0, 8)):
            x, y = rng.uniform(0, 300, 2)
            w, h = np.exp(rng.uniform(2, 5.2, 2))
            category = int(rng.choice(ids[:3]))  # the last has no boxes
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h * rng.uniform(0.5, 1),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
            for _ in range(rng.integers(0, 3)):
                noise = rng.normal(0, 0.15, 4) * [w, h, w, h]
                box = (np.array([x, y, w, h]) + noise).tolist()
                guess = category if rng.random() < 0.8 else int(rng.choice(ids))
                detections.append(
                    {
                        "image_id": image_id,
                        "category_id": guess,
                        "bbox": [box[0], box[1], max(1, box[2]), max(1, box[3])],
                        "score": round(float(rng.random()), 2),
                    }
                )
    return truth, detections


@pytest.mark.parametrize("seed", range(4))
def test_hotcoco_equals_pycocotools(seed):
    truth, detections = random_case(seed)
    ours, arbiter = (coco.score(truth, detections, engine) for engine in ENGINES)
    for name in coco.METRICS:
        assert ours[name] == pytest.approx(arbiter[name], abs=1e-12), name
    for name in ("per_class", "per_class_AP50"):
        assert ours[name] == pytest.approx(arbiter[name], abs=1e-12)
    assert ours["per_class"]["class 90"] == -1
    defined = [v for v in ours["per_class"].values() if v >= 0]
    assert ours["AP"] == pytest.approx(np.mean(defined))


@pytest.mark.parametrize("engine", ENGINES)
def test_no_detections_score_zero(engine):
    truth, _ = random_case(0)
    metrics = coco.score(truth, [], engine)
    assert metrics["AP"] == 0
    assert metrics["AR100"] == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_the_truth_itself_scores_one(engine, shapes_dir):
    split = open_split(shapes_dir / "shapes" / "1.0.0", "validation")
    truth = coco.ground_truth(split)
    results = []
    for row in range(len(split)):
        example = split[row]
        some = ~example.is_crowd
        found = Detections(
            boxes=example.boxes[some],
            scores=np.full(some.sum(), 0.9),
            labels=example.labels[some],
        )
        results += coco.results(example.image_id, found, split.category_ids)
    assert coco.score(truth, results, engine)["AP"] == pytest.approx(1.0)


def test_results_are_in_the_data_sets_own_ids_and_pixels():
    found = Detections(
        boxes=np.array([[5.0, 40, 15, 120]]),
        scores=np.array([0.75], np.float32),
        labels=np.array([1]),
    )
    (result,) = coco.results(42, found, (1, 7))
    assert json.loads(json.dumps(result)) == {
        "image_id": 42,
        "category_id": 7,
        "bbox": [5.0, 40.0, 10.0, 80.0],
        "score": 0.75,
    }
