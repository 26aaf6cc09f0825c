"""A run that a signal ends: it saves and says so, or goes on from its last checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import on_one_device

from retina_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.faults

REPOSITORY = Path(__file__).parents[2]
DEADLINE = 600  # seconds, for what takes a fraction of it on a machine with nothing else to do


def started(tmp_path, shapes_dir, steps, workers=0):
    flags = {
        "data.num_workers": workers,
        "data.dir": shapes_dir, "model.width": 8, "model.fpn_channels": 16,
        "model.head_channels": 16, "model.head_convs": 1, "train.steps": steps,
        "train.log_every": 1, "train.checkpoint_every": 3, "eval.every": 0, "eval.pictures": 0,
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "retina_jax.main", "--config=experiments/shapes.py",
         f"--workdir={tmp_path}/run", *(f"--config.{k}={v}" for k, v in flags.items())],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a terminal gives
        env=on_one_device(),
    )  # fmt: skip


def wait_for_steps(tmp_path, process, count):
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + DEADLINE
    while not (log.exists() and len(log.read_text().splitlines()) >= count):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no steps"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code", "workers"), [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 2)]
)
def test_told_to_stop_it_saves_and_says_so(tmp_path, shapes_dir, number, code, workers):
    process = started(tmp_path, shapes_dir, steps=10**6, workers=workers)
    wait_for_steps(tmp_path, process, 2)
    if workers:  # Ctrl-C reaches the workers too
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, said
    assert f"stopped by {signal.Signals(number).name}; checkpoint saved in" in said
    assert "Traceback" not in said
    logged = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.latest_step() == json.loads(logged[-1])["step"]
    checkpoints.close()


def test_killed_it_goes_on_from_the_last_checkpoint(tmp_path, shapes_dir):
    process = started(tmp_path, shapes_dir, steps=10**6)
    wait_for_steps(tmp_path, process, 5)
    deadline = time.monotonic() + DEADLINE
    while not any(p.name.isdigit() for p in (tmp_path / "run/checkpoints").iterdir()):
        assert time.monotonic() < deadline, "no whole checkpoint"
        time.sleep(0.05)
    process.kill()
    process.communicate()
    with (tmp_path / "run/metrics.jsonl").open("a") as log:
        log.write('{"step": 1, "lo')  # a line that the kill cut short
    checkpoints = Checkpoints(tmp_path / "run")
    step = checkpoints.latest_step()
    checkpoints.close()
    assert step >= 3
    process = started(tmp_path, shapes_dir, steps=step + 2)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, said
    assert f"resuming from step {step} of {step + 2}" in said
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, step + 3))
