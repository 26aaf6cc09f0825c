"""The whole program: it learns, resumes bit for bit, stops when told, compiles what it must."""

import io
import json
import logging
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from support import events_in

from retina_jax import parallel
from retina_jax.errors import RunError, UserError
from retina_jax.evaluation import coco
from retina_jax.jobs import evaluate, train
from retina_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture
def copied_run(finished_run, tmp_path):
    """A finished run of ``tiny_config`` to train on or evaluate."""
    return Path(shutil.copytree(finished_run, tmp_path / "finished"))


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
    """Two of the eight virtual devices: more only take longer to compile for."""
    two = parallel.Devices.local(2)
    monkeypatch.setattr(parallel.Devices, "local", lambda: two)


def last_state(workdir):
    checkpoints = Checkpoints(workdir)
    weights = checkpoints.restore_weights(checkpoints.latest_step())
    checkpoints.close()
    return weights


def metrics_of(workdir, step):
    return json.loads((workdir / "eval" / str(step) / "metrics.json").read_text())


@pytest.fixture
def four_pictures(tiny_config, made_once):
    """A config that learns four pictures by heart; what varies between tests is not compiled in."""
    from retina_jax.prepare import shapes

    config = tiny_config
    config.data.dir = str(
        made_once("four", lambda out: shapes.build(out, {"train": 4, "validation": 1}))
    )
    config.data.eval_split = "train"
    config.data.flip = False
    config.data.short_side = config.data.long_side = 64
    config.model.width = 16
    config.model.fpn_channels = config.model.head_channels = 32
    config.optimizer.learning_rate = 0.2
    config.optimizer.warmup_steps = 30
    config.optimizer.schedule = "step"  # a cosine of two steps is another schedule
    config.train.batch_size = config.eval.batch_size = 4
    return config


@pytest.mark.optimized
@pytest.mark.usefixtures("quick_init")
def test_two_steps_a_restart_and_two_more_equal_four_bit_for_bit(four_pictures, tmp_path, quiet):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    config = four_pictures
    config.data.flip = True
    assert train.run(config, str(whole), quiet) == 0
    config.train.steps = 2
    assert train.run(config, str(halves), quiet) == 0
    config.train.steps = 4
    assert train.run(config, str(halves), quiet) == 0
    jax.tree.map(np.testing.assert_array_equal, last_state(whole), last_state(halves))
    logs = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, halves)
    ]
    assert len(logs[0]) == 4
    assert logs[0] == logs[1]
    assert metrics_of(whole, 4) == metrics_of(halves, 4)


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.usefixtures("quick_init")
def test_overfits_four_pictures(four_pictures, tmp_path, quiet):
    four_pictures.train.steps = 200
    four_pictures.train.log_every = 50
    four_pictures.train.checkpoint_every = 200
    assert train.run(four_pictures, str(tmp_path / "run"), quiet) == 0
    assert metrics_of(tmp_path / "run", 200)["AP"] > 0.95


def test_a_run_leaves_all_that_it_promises(finished_run):
    lines = (finished_run / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [e["step"] for e in entries] == [1, 2, 3, 4]
    for name in ("loss", "loss_classification", "loss_box", "images_per_second", "learning_rate"):
        assert all(name in entry for entry in entries)
    metrics = metrics_of(finished_run, 4)
    assert set(coco.METRICS) < set(metrics)
    assert set(metrics["per_class"]) == {"disc", "ring", "bar", "triangle", "cross"}
    assert metrics["images"] == 10
    detections = json.loads((finished_run / "eval/4/detections.json").read_text())
    assert len(detections) == metrics["detections"] > 0
    assert all(set(d) == {"image_id", "category_id", "bbox", "score"} for d in detections)
    config = json.loads((finished_run / "config.json").read_text())
    assert config["train"]["steps"] == 4
    assert config["resolved"]["class_names"] == ["disc", "ring", "bar", "triangle", "cross"]
    assert list((finished_run / "tensorboard").glob("events*"))
    for picture in ("eval/4/detections.png", "curves.png"):
        assert Image.open(finished_run / picture).size > (300, 100)


def test_tensorboard_shows_the_run_by_level_and_its_detections(finished_run):
    events = events_in(finished_run / "tensorboard")
    entry = json.loads((finished_run / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("loss_classification", "loss_box", "foreground_anchors"):
        levels = [events[f"levels/{name}_P{level}"][4] for level in range(3, 8)]
        assert sum(levels) == pytest.approx(events[f"train/{name}"][4], rel=1e-5)
        assert entry[name] == pytest.approx(events[f"train/{name}"][4])
    assert events["train/foreground_per_image"][4] == entry["foreground_anchors"] / 8
    weights = jax.tree.leaves(last_state(finished_run)["params"])
    norm = np.sqrt(sum(np.square(w, dtype=np.float64).sum() for w in weights))
    assert entry["weight_norm"] == pytest.approx(norm, rel=1e-5)
    assert events["memory/host_gib"].keys() == {1, 2, 3, 4}
    assert events["eval/AP75"].keys() == events["eval_AP_of_class/ring"].keys() == {4}
    pictures = [values for tag, values in events.items() if tag.startswith("detections/image_")]
    assert [set(values) for values in pictures] == [{4}, {4}]
    with Image.open(io.BytesIO(pictures[0][4])) as shown:
        assert shown.size > (600, 300)


def test_a_finished_run_trained_or_evaluated_again_gives_the_same(tiny_config, copied_run, quiet):
    metrics = metrics_of(copied_run, 4)
    assert train.run(tiny_config, str(copied_run), quiet) == 0
    assert metrics_of(copied_run, 4) == metrics
    (copied_run / "eval/4/metrics.json").unlink()
    assert evaluate.run(tiny_config, str(copied_run), quiet) == 0
    assert metrics_of(copied_run, 4) == metrics


class _Compilations(logging.Handler):
    """Names of the programs that XLA compiles while it listens; pmap calls its own _fun."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        if match := re.match(r"Finished XLA compilation of (?:\w+\()?(\w+)", record.getMessage()):
            self.names.append(match.group(1))


@pytest.fixture
def compilations():
    handler = _Compilations()
    logger = logging.getLogger("jax._src.dispatch")
    logger.addHandler(handler)
    with jax.log_compiles():
        yield handler.names
    logger.removeHandler(handler)


@pytest.mark.usefixtures("small_model")
@pytest.mark.parametrize("buckets", [((128, 128),), ((96, 128), (128, 96))])
def test_one_program_a_bucket_and_no_more(two_aspects, tiny_config, tmp_path, quiet, compilations,
                                          buckets):  # fmt: skip
    config = tiny_config
    config.data.dir, config.data.name = str(two_aspects), ""
    config.data.short_side, config.data.long_side = 96, 128
    config.data.buckets = buckets
    config.data.max_boxes = 64
    config.train.steps = 6
    config.eval.every = 3
    assert train.run(config, str(tmp_path / "run"), quiet) == 0
    # train and predict, and one that compares the devices
    assert compilations.count("_fun") == 2 * len(buckets) + 1


@pytest.mark.usefixtures("small_model")
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(tiny_config, tmp_path, quiet):
    tiny_config.optimizer.learning_rate = 1e30
    tiny_config.optimizer.clip_norm = 0.0
    tiny_config.train.log_every = 4
    with pytest.raises(RunError, match=r"step 2: loss .* on images \d+, .*no checkpoint has been"):
        train.run(tiny_config, str(tmp_path / "stop"), quiet)
    tiny_config.train.on_nonfinite = "skip"
    tiny_config.train.log_every = 1
    assert train.run(tiny_config, str(tmp_path / "skip"), quiet) == 0
    lines = (tmp_path / "skip/metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert entries[0]["loss"] > 0
    assert [entry["loss"] for entry in entries[1:]] == [None] * 3
    assert entries[-1]["skipped_steps"] == 3
    assert (tmp_path / "skip/curves.png").exists()


def test_a_checkpoint_of_another_run_is_a_mistake(tiny_config, copied_run, quiet):
    written = (copied_run / "config.json").read_text()
    tiny_config.train.steps = 3
    with pytest.raises(UserError, match="is already trained to step 4, beyond"):
        train.run(tiny_config, str(copied_run), quiet)
    tiny_config.train.steps = 5
    tiny_config.model.fpn_channels = 32
    with pytest.raises(UserError, match=r"fpn_channels=32 .*set --config.model.fpn_channels=16"):
        train.run(tiny_config, str(copied_run), quiet)
    assert (copied_run / "config.json").read_text() == written


def test_weights_of_another_run_are_a_start(tiny_config, finished_run, tmp_path, quiet):
    tiny_config.train.steps = 1
    tiny_config.model.init_from = str(finished_run)
    tiny_config.optimizer.learning_rate = 1e-30
    tiny_config.optimizer.weight_decay = 0.0
    assert train.run(tiny_config, str(tmp_path / "second"), quiet) == 0
    first, second = last_state(finished_run), last_state(tmp_path / "second")
    jax.tree.map(np.testing.assert_array_equal, first["params"], second["params"])
    tiny_config.model.init_from = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"init_from='.*nowhere' is neither a workdir"):
        train.run(tiny_config, str(tmp_path / "third"), quiet)
