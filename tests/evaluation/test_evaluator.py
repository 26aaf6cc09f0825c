"""An evaluation: what it scores, what it writes, and that it writes nothing when stopped."""

import json

import numpy as np
import pytest
from PIL import Image

from retina_jax import parallel
from retina_jax.data.data_set import open_split
from retina_jax.evaluation import coco, evaluator
from retina_jax.types import Detections


@pytest.fixture
def split(shapes_dir):
    return open_split(shapes_dir / "shapes" / "1.0.0", "validation")


@pytest.fixture
def make(split, tiny_config, monkeypatch):
    """An evaluator whose network finds what ``detections(example)`` says."""

    def make(detections):
        def make_detect(model, config, devices):
            def stream(variables, batches):
                assert variables == "weights"
                for batch in batches:
                    for row in batch.index[batch.example_mask]:
                        yield int(row), detections(split[int(row)])

            return stream

        monkeypatch.setattr(evaluator, "make_detect", make_detect)
        return evaluator.Evaluator(None, split, tiny_config, parallel.Devices.local(1))

    return make


def truth(example):
    boxes = example.boxes[~example.is_crowd]
    return Detections(boxes, np.full(len(boxes), 0.9), example.labels[~example.is_crowd])


def shifted(example):
    """Every box by its own width: no overlap is left."""
    found = truth(example)
    width = found.boxes[:, 2] - found.boxes[:, 0]
    return found.replace(boxes=found.boxes + width[:, None] * [1, 0, 1, 0])


def test_the_truth_scores_one_and_is_written(make, split, tmp_path):
    metrics = make(truth).run("weights", 7, tmp_path / "eval/7")
    assert metrics["AP"] == pytest.approx(1)
    assert (metrics["step"], metrics["images"]) == (7, len(split))
    detections = json.loads((tmp_path / "eval/7/detections.json").read_text())
    assert len(detections) == metrics["detections"] == split.box_counts.sum()
    assert {d["image_id"] for d in detections} == set(split.image_ids[split.box_counts > 0])
    written = json.loads((tmp_path / "eval/7/metrics.json").read_text())
    assert written == json.loads(json.dumps(metrics))
    assert set(coco.METRICS) < written.keys()
    assert Image.open(tmp_path / "eval/7/detections.png").size > (300, 100)


def test_boxes_elsewhere_score_nothing(make, split, tmp_path, monkeypatch):
    own = make(shifted)
    assert own.run("weights", 7, tmp_path)["AP"] < 0.1
    assert [image_id for image_id, _ in own.drawn()] == split.image_ids[[0, -1]].tolist()
    monkeypatch.setattr(evaluator, "_SHOWN", 1)
    own.run("weights", 7, tmp_path)
    assert [image_id for image_id, _ in own.drawn()] == split.image_ids[:1].tolist()


def test_no_pictures_are_drawn_where_none_are_asked_for(make, tiny_config, tmp_path):
    tiny_config.eval.pictures = 0
    own = make(truth)
    own.run("weights", 7, tmp_path)
    assert own.drawn() == []
    assert {p.name for p in tmp_path.iterdir()} == {"detections.json", "metrics.json"}


def test_told_to_stop_it_writes_nothing(make, tmp_path):
    shown, asked = [], []
    stopped = make(truth).run(
        "weights", 7, tmp_path / "eval", lambda: shown.append(0),
        lambda batch: asked.append(batch) or batch == 1,
    )  # fmt: skip
    assert stopped is None
    assert asked == [0, 1]
    assert len(shown) == 8  # the first batch
    assert not (tmp_path / "eval").exists()


def test_the_metrics_are_written_last(make, tmp_path, monkeypatch):
    """They say that all the rest is there."""
    written, own = [], evaluator.write_json

    def write_json(path, value):
        written.append((path.name, (tmp_path / "detections.png").exists()))
        own(path, value)

    monkeypatch.setattr(evaluator, "write_json", write_json)
    make(truth).run("weights", 7, tmp_path)
    assert written == [("detections.json", False), ("metrics.json", True)]
