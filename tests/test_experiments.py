"""Experiments: the conventions of the systems that they are named after, and runs by flags alone
(one step of the paper's on a small COCO, real blood cells).
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retina_jax.config import leaves
from retina_jax.data.data_set import open_split
from retina_jax.evaluation import coco

REPOSITORY = Path(__file__).parent.parent

# the convention table of shared/reference.md, column by column; what all have in common first
ALL = {
    "anchors.scale": 4.0,  # 32 px at stride 8
    "anchors.octaves": (0, 1 / 3, 2 / 3),
    "matching.foreground_iou": 0.5,
    "matching.low_quality": True,
    "coder.weights": (1, 1, 1, 1),
    "loss.classification": "focal",
    "loss.alpha": 0.25,
    "model.prior": 0.01,
    "eval.score_threshold": 0.05,
    "eval.nms_iou": 0.5,
}
PAPER = ALL | {
    "anchors.ratios": (0.5, 1, 2),
    "matching.background_iou": 0.4,
    "loss.gamma": 2,
    "loss.box": "smooth_l1",
    "loss.normalizer": "foreground",
    "model.predictor_std": 0.01,
    "model.p6_from": "C5",
    "model.head_norm": "none",
    "data.labels": "dense",
    "eval.top_k": 1000,
    "eval.max_detections": 100,
    "data.short_side": 800,
    "optimizer.name": "sgd",
    "optimizer.momentum": 0.9,
    "train.batch_size": 16,
    "optimizer.learning_rate": 0.01,
    "optimizer.learning_rate_batch": 16,
    "train.steps": 90_000,
    "optimizer.decay_at": (60_000, 80_000),
    "optimizer.decay_factor": 0.1,
    "optimizer.weight_decay": 1e-4,
}
EPOCH = 117_266 / 16  # COCO's training images with boxes, in batches
TORCHVISION = ALL | {
    "anchors.ratios": (0.5, 1, 2),
    "anchors.order": "ratio_major",
    "anchors.truncate_sizes": True,
    "anchors.rounded": True,
    "anchors.offset": 0,
    "anchors.stride_from": "grid",
    "matching.background_iou": 0.4,
    "coder.clamp": math.log(1000 / 16),
    "loss.gamma": 2,
    "loss.normalizer": "per_image",
    "model.predictor_std": 0.01,
    "model.frozen_stages": 2,  # of stem and four stages, the last three are trained
    "model.stride_in_1x1": False,
    "data.labels": "category_ids",
    "data.drop_empty": True,
    "data.short_side": 800,
    "data.long_side": 1333,
    "data.rounding": "floor",
    "data.antialias": False,
    "data.pixel_order": "RGB",
    "data.mean": (123.675, 116.28, 103.53),
    "data.std": (58.395, 57.12, 57.375),
    "eval.top_k": 1000,
    "eval.max_detections": 300,
    "train.steps": round(26 * EPOCH),
    "optimizer.decay_at": (round(16 * EPOCH), round(22 * EPOCH)),
    "optimizer.decay_factor": 0.1,
    "optimizer.warmup_steps": 1000,
    "optimizer.warmup_factor": 0.001,
}
DETECTRON2 = ALL | {
    "anchors.ratios": (0.5, 1, 2),
    "anchors.order": "size_major",
    "anchors.truncate_sizes": False,
    "anchors.rounded": False,
    "anchors.offset": 0,
    "anchors.stride_from": "level",
    "matching.background_iou": 0.4,
    "coder.clamp": math.log(1000 / 16),
    "loss.gamma": 2,
    "loss.box": "l1",
    "loss.normalizer": "ema",
    "loss.ema_initial": 100,
    "loss.ema_momentum": 0.9,
    "model.predictor_std": 0.01,
    "model.p6_from": "C5",
    "model.head_norm": "none",
    "model.norm": "frozen",
    "model.frozen_stages": 2,
    "model.stride_in_1x1": True,
    "data.labels": "dense",
    "data.drop_empty": True,
    "data.short_side": 800,
    "data.long_side": 1333,
    "data.train_short_sides": (640, 672, 704, 736, 768, 800),
    "data.scale_range": (1, 1),
    "data.rounding": "nearest",
    "data.antialias": True,
    "data.pixel_order": "BGR",
    "data.mean": (103.53, 116.28, 123.675),
    "data.std": (1, 1, 1),
    "eval.top_k": 1000,
    "eval.max_detections": 100,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.01,
    "optimizer.weight_decay": 1e-4,
    "optimizer.decay_biases": True,
    "optimizer.warmup_steps": 1000,
    "optimizer.warmup_factor": 0.001,
}
CONVENTIONS = {
    "coco": PAPER,
    "coco_torchvision_v1": TORCHVISION
    | {
        "loss.box": "l1",
        "model.p6_from": "P5",
        "model.head_norm": "none",
        "model.norm": "frozen",
        "data.train_short_sides": (),
        "data.scale_range": (1, 1),
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.01,
    },
    "coco_torchvision_v2": TORCHVISION
    | {
        "loss.box": "giou",
        "model.p6_from": "C5",
        "model.head_norm": "group",
        "model.norm": "batch",
        # its references/detection/presets.py: 480 to 800 by 32
        "data.train_short_sides": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        "data.scale_range": (1, 1),
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 1e-4,
        "optimizer.weight_decay": 0.05,
    },
    "coco_detectron2": DETECTRON2 | {"train.steps": 90_000, "optimizer.decay_at": (60_000, 80_000)},
    "coco_detectron2:1x": DETECTRON2
    | {"train.steps": 90_000, "optimizer.decay_at": (60_000, 80_000)},
    "coco_detectron2:3x": DETECTRON2
    | {"train.steps": 270_000, "optimizer.decay_at": (210_000, 250_000)},
    "coco_tf_model_garden": ALL
    | {
        "anchors.ratios": (2, 1, 0.5),  # 0.5, 1, 2 of width over height
        "anchors.order": "size_major",
        "anchors.truncate_sizes": False,
        "anchors.rounded": False,
        "anchors.offset": 0.5,
        "anchors.stride_from": "level",
        "matching.background_iou": 0.5,
        "coder.clamp": 88.0,  # exp of it is the largest that float32 holds: no clamp
        "loss.gamma": 1.5,
        "loss.box": "smooth_l1",
        "loss.smooth_l1_beta": 0.1,
        "loss.box_weight": 50 * 0.1 / 4,  # Huber is delta times it, and the mean of four
        "loss.normalizer": "foreground_plus_1",
        "model.predictor_std": 1e-5,
        "model.p6_from": "P5",
        "model.head_norm": "batch",
        "model.norm": "batch",
        "model.frozen_stages": 0,
        "data.labels": "category_ids",
        "data.drop_empty": False,
        "data.short_side": 640,
        "data.long_side": 640,
        "data.buckets": ((640, 640),),
        "data.train_short_sides": (),
        "data.scale_range": (0.8, 1.2),
        "data.pixel_order": "RGB",
        "data.mean": (123.675, 116.28, 103.53),
        "data.std": (58.395, 57.12, 57.375),
        "eval.top_k": 5000,
        "eval.max_detections": 100,
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.32,
        "optimizer.learning_rate_batch": 256,
        "train.batch_size": 256,
        "train.steps": 72 * (118_287 // 256),
        "optimizer.warmup_steps": 500,
        "optimizer.warmup_factor": 0.0067 / 0.32,
        "optimizer.weight_decay": 1e-4,
    },
}


@pytest.mark.parametrize("experiment", CONVENTIONS)
def test_conventions_are_those_of_the_system(experiment):
    name, _, schedule = experiment.partition(":")
    path = REPOSITORY / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fields = leaves(module.get_config(*([schedule] if schedule else [])))
    found = {field: fields[field] for field in CONVENTIONS[experiment]}
    assert found == CONVENTIONS[experiment]


def program(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "retina_jax.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_a_step_of_the_papers_experiment_on_a_coco_shaped_tree(coco_tree, tmp_path):
    done = program(
        "--config=experiments/coco.py", f"--workdir={tmp_path}", f"--config.data.dir={coco_tree}",
        "--config.data.short_side=128", "--config.data.long_side=213",
        "--config.data.buckets=((128,224),(224,128))", "--config.model.width=8",
        "--config.model.fpn_channels=16", "--config.model.head_channels=16",
        "--config.train.steps=1", "--config.train.batch_size=4", "--config.train.log_every=1",
        "--config.eval.batch_size=4", "--config.eval.score_threshold=0.0",
    )  # fmt: skip
    assert "80 classes" in done.stderr
    metrics = json.loads((tmp_path / "eval/1/metrics.json").read_text())
    assert metrics["images"] == 18
    assert len(metrics["per_class"]) == 80
    known = set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    detections = json.loads((tmp_path / "eval/1/detections.json").read_text())
    assert {d["image_id"] for d in detections} == {1000 + 7 * i for i in range(18)}
    assert {d["category_id"] for d in detections} <= known
    for d in detections:  # original pixels: all pictures are at most 640 wide and high
        x, y, w, h = d["bbox"]
        assert min(x, y, w, h) >= 0
        assert max(x + w, y + h) <= 640.01
    (entry,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(entry)["loss_classification"] > 0


def prepared_blood_cells(bccd, out):
    subprocess.run(
        [sys.executable, REPOSITORY / "scripts/prepare.py", "coco", "--images", bccd / "images",
         "--annotations", bccd / "train.json", "--annotations", bccd / "val.json", "--out", out],
        check=True,
    )  # fmt: skip
    return out


def test_real_images_come_back_as_their_annotations_say(bccd, tmp_path):
    """Needs ../shared/data/bccd."""
    out = prepared_blood_cells(bccd, tmp_path)
    original = json.loads((bccd / "val.json").read_text())
    truth = coco.ground_truth(open_split(out / "coco" / "1.0.0", "validation"))
    key = lambda a: (a["image_id"], a["category_id"], *a["bbox"])  # noqa: E731
    ours = sorted(key(a) for a in truth["annotations"])
    assert ours == sorted(key(a) for a in original["annotations"])
    assert {c["id"]: c["name"] for c in truth["categories"]} == {
        1: "RBC", 3: "WBC", 7: "Platelets"
    }  # fmt: skip


@pytest.mark.slow
def test_the_custom_experiment_takes_classes_and_paths_from_the_data(bccd, tmp_path):
    """Needs ../shared/data/bccd."""
    out = prepared_blood_cells(bccd, tmp_path / "data")
    done = program(
        "--config=experiments/custom.py", f"--workdir={tmp_path}/run", f"--config.data.dir={out}",
        "--config.data.short_side=96", "--config.data.long_side=128",
        "--config.data.buckets=((96,128),)", "--config.model.width=8",
        "--config.model.fpn_channels=32", "--config.model.head_channels=32",
        "--config.train.steps=2", "--config.eval.engine=pycocotools",
    )  # fmt: skip
    assert "3 classes" in done.stderr
    metrics = json.loads((tmp_path / "run/eval/2/metrics.json").read_text())
    assert set(metrics["per_class"]) == {"RBC", "WBC", "Platelets"}
    assert metrics["images"] == 87
