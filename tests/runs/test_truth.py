"""Runs that tell the truth: advice that can be followed, data that trains nothing, odd names."""

import dataclasses
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from retina_jax import parallel
from retina_jax.config import default_config
from retina_jax.data.data_set import open_split
from retina_jax.doctor import checks
from retina_jax.doctor.report import text_tables
from retina_jax.errors import NonFiniteLossError, UserError
from retina_jax.evaluation.report import print_table
from retina_jax.jobs.evaluate import main as evaluate_main
from retina_jax.prepare.shapes import draw_record
from retina_jax.prepare.writer import write_data_set
from retina_jax.progress import Reporter
from retina_jax.runs.train import train
from retina_jax.training.workdir import read_config

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("shallow")
NAMES = ("[/closed]", "[m8]", "[red]bar[/red]", "a\\[b", "cross")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """One of the eight virtual devices: more only take longer to compile for."""
    one = parallel.Devices.local(1)
    monkeypatch.setattr(parallel.Devices, "local", lambda: one)


class Drawn:
    """Rows of the embedded data set, changed."""

    def __init__(self, split, rows, change):
        self._split, self._rows, self._change = split, rows, change

    def __len__(self):
        return self._rows

    def read(self, row):
        return self._change(draw_record(self._split, row))

    def fingerprint(self, row):
        return str(row)


def written(folder, change, names=NAMES, rows=8):
    splits = {split: Drawn(split, rows, change) for split in ("train", "validation")}
    directory, _ = write_data_set(folder, "shapes", splits, names, range(1, 6), "changed")
    return directory


def as_crowds(record):
    return dataclasses.replace(record, is_crowd=np.ones(len(record.labels), bool))


def one_class_as_crowds(record):
    return dataclasses.replace(record, is_crowd=record.is_crowd | (record.labels == 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_crowds, r"train: all boxes \(\d+\) are crowds .*, so nothing can be learned"),
        (
            one_class_as_crowds,
            r"every box of class bar is a crowd .*so the class cannot be learned",
        ),
    ],
)
def test_what_nothing_can_be_learned_from_stops_before_step_0(
    tiny_config, tmp_path, change, message
):
    names = ("disc", "ring", "bar", "triangle", "cross")
    directory = written(tmp_path / "data", change, names)
    tiny_config.data.dir = str(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    split = open_split(directory, "train")
    found = checks.check_numbers(split, tiny_config, trains=True)
    assert [f.level for f in found] == ["error"]
    assert re.search(message, found[0].message)


def test_crowds_are_no_objects_in_counts(tmp_path):
    split = open_split(written(tmp_path, one_class_as_crowds, rows=6), "train")
    objects, crowds = split.label_counts()
    assert objects[2] == 0
    assert crowds[2] > 0
    records = [split[row] for row in range(len(split))]
    assert split.object_counts.tolist() == [int((~r.is_crowd).sum()) for r in records]
    assert objects.sum() == split.object_counts.sum()


def test_names_that_look_like_markup_are_printed_as_they_are():
    said = io.StringIO()
    console = Console(file=said, width=200)
    metrics = {
        "images": 3, "step": 1, "per_class": dict.fromkeys(NAMES, 0.5),
        "per_class_AP50": dict.fromkeys(NAMES),
        **dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs",
                         "ARm", "ARl"), None),
    }  # fmt: skip
    print_table(console, metrics)
    reporter = Reporter(console)
    for name in NAMES:
        reporter.say(f"said {name}")
        reporter.note(f"noted {name}")
        with reporter.progress(name, 3) as bar:
            bar.QUIET_SECONDS = -1
            bar.advance(name)
    text = said.getvalue()
    for name in NAMES:
        assert text.count(name) >= 4, name
    assert "–" in text


def test_names_that_look_like_markup_pass_through_the_doctor(tmp_path):
    from retina_jax.doctor.examine import examine

    directory = written(tmp_path, lambda record: record)
    splits = [open_split(directory, name) for name in ("train", "validation")]
    config = default_config()
    config.data.short_side = config.data.long_side = 128
    said = io.StringIO()
    console = Console(file=said, width=300)
    for table in text_tables(examine(*splits, config)):
        console.print(table)
    for name in NAMES:
        assert name in said.getvalue()


@pytest.mark.usefixtures("small_model")
def test_the_advice_after_a_non_finite_loss_can_be_followed(tiny_config, tmp_path):
    config = tiny_config
    config.optimizer.schedule, config.optimizer.clip_norm = "step", 0.0
    config.train.steps, config.train.checkpoint_every = 2, 2
    train(config, tmp_path / "run")
    config.train.steps = 5
    healthy = config.optimizer.learning_rate
    config.optimizer.learning_rate = 1e30
    with pytest.raises(NonFiniteLossError) as caught:
        train(config, tmp_path / "run")
    advice = str(caught.value)
    assert "the last good checkpoint is at step 2" in advice
    flags = dict(re.findall(r"--config\.([\w.]+)=?(\w*)", advice))
    assert flags == {
        "optimizer.learning_rate": "", "optimizer.clip_norm": "10", "train.on_nonfinite": "skip"
    }  # fmt: skip
    config.optimizer.learning_rate = healthy
    config.optimizer.clip_norm = float(flags["optimizer.clip_norm"])
    result = train(config, tmp_path / "run")
    assert result.metrics["step"] == 5


@pytest.mark.usefixtures("small_model")
def test_evaluate_takes_the_config_from_the_workdir_and_keeps_the_runs_own_scores(
    tiny_config, tmp_path, capsys
):
    tiny_config.train.steps = 1
    run = tmp_path / "run"
    train(tiny_config, run)
    own = (run / "eval/1/metrics.json").read_bytes()
    assert evaluate_main([f"--workdir={run}"]) == 0
    assert (run / "eval/1/metrics.json").read_bytes() == own
    assert evaluate_main([f"--workdir={run}", "--config.eval.nms-iou=0.3"]) == 0
    assert (
        "config.eval.nms_iou is 0.5 in the run, 0.3 in this evaluation" in capsys.readouterr().err
    )
    assert (run / "eval/1-nms_iou=0.3/metrics.json").exists()
    assert (run / "eval/1/metrics.json").read_bytes() == own
    assert read_config(run).eval.nms_iou == 0.5


WITHOUT_A_HOME = """
import os, sys
import numba, numpy as np  # the interpreter's own folder may be root's alone
numba.njit(lambda x: x + 1)(1)
import retina_jax.types
os.setgid(65534); os.setuid(65534)
from retina_jax.evaluation.nms import class_wise_nms
boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]], np.float32)
kept = class_wise_nms(boxes, np.array([.9, .8, .7]), np.zeros(3, np.int32), 0.5, 10)
assert kept.tolist() == [0, 2], kept
try:
    open(sys.argv[1], "w")
except PermissionError:
    print("and nothing can be written")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, which it drops")
def test_neither_a_writable_package_nor_a_home_is_needed(tmp_path):
    import retina_jax

    package = Path(retina_jax.__file__).parent
    environment = {**os.environ, "HOME": "/proc/none", "PYTHONPATH": str(package.parent)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_HOME, package / "none"],
        env=environment, capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "and nothing can be written" in done.stdout
