"""Experiments: the conventions of the systems that they are named after, and runs by flags alone
(one step of the paper's on a small COCO, real blood cells).
"""

import importlib.util
import json
from pathlib import Path

import pytest
from conventions import SYSTEMS, conventions

from retina_jax.config import leaves, resolve, validate
from retina_jax.data.data_set import open_split
from retina_jax.evaluation import coco

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


def load(experiment):
    """The config of ``NAME`` or ``NAME:SCHEDULE``."""
    name, _, schedule = experiment.partition(":")
    path = REPOSITORY / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([schedule] if schedule else []))


@pytest.fixture(scope="session")
def reference():
    """The published table; skips only where the folder is absent."""
    path = SHARED / "reference.md"
    if not path.is_file():
        pytest.skip("needs ../shared/reference.md")
    return path.read_text()


@pytest.mark.parametrize("experiment", SYSTEMS)
def test_conventions_are_those_of_the_system(experiment, reference):
    """As published; `tests/parity` compares what they do."""
    config = load(experiment)
    fields = leaves(config) | {"data.buckets": resolve(config).buckets}
    expected = conventions(reference, experiment, fields)
    assert len(expected) > 25
    assert {name: fields[name] for name in expected} == expected


EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "experiments").glob("*.py"))
VARIANTS = ("shapes:gfl", "custom:paper", "finetune:focal", "coco_detectron2:3x")


@pytest.mark.parametrize("experiment", [*EXPERIMENTS, *VARIANTS])
def test_every_experiment_is_valid(experiment):
    validate(load(experiment))


def test_an_unknown_variant_is_told():
    with pytest.raises(ValueError, match=r"shapes\.py:modern must be :paper or :gfl"):
        load("shapes:modern")


@pytest.mark.usefixtures("shallow")
def test_a_step_of_the_papers_experiment_on_a_coco_shaped_tree(program, coco_tree, tmp_path):
    done = program(
        "--config=experiments/coco.py", f"--workdir={tmp_path}", f"--config.data.dir={coco_tree}",
        "--config.data.short_side=128", "--config.data.long_side=213",
        "--config.data.buckets=((128,224),(224,128))", "--config.model.width=8",
        "--config.model.fpn_channels=16", "--config.model.head_channels=16",
        "--config.model.head_convs=1",
        "--config.train.steps=1", "--config.train.batch_size=4", "--config.train.log_every=1",
        "--config.eval.batch_size=4", "--config.eval.score_threshold=0.0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
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


def test_real_images_come_back_as_their_annotations_say(bccd, bccd_data):
    """Needs ../shared/data/bccd."""
    original = json.loads((bccd / "val.json").read_text())
    truth = coco.ground_truth(open_split(bccd_data / "coco" / "1.0.0", "validation"))
    key = lambda a: (a["image_id"], a["category_id"], *a["bbox"])  # noqa: E731
    ours = sorted(key(a) for a in truth["annotations"])
    assert ours == sorted(key(a) for a in original["annotations"])
    assert {c["id"]: c["name"] for c in truth["categories"]} == {
        1: "RBC", 3: "WBC", 7: "Platelets"
    }  # fmt: skip


@pytest.mark.usefixtures("shallow")
def test_the_custom_experiment_takes_classes_and_paths_from_the_data(program, bccd_data, tmp_path):
    """Needs ../shared/data/bccd."""
    done = program(
        "--config=experiments/custom.py", f"--workdir={tmp_path}/run",
        f"--config.data.dir={bccd_data}",
        "--config.data.short_side=96", "--config.data.long_side=128",
        "--config.data.buckets=((96,128),)", "--config.model.width=8",
        "--config.model.fpn_channels=16", "--config.model.head_channels=16",
        "--config.model.head_convs=1",
        "--config.train.steps=2", "--config.eval.engine=pycocotools",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 classes" in done.stderr
    metrics = json.loads((tmp_path / "run/eval/2/metrics.json").read_text())
    assert set(metrics["per_class"]) == {"RBC", "WBC", "Platelets"}
    assert metrics["images"] == 87
