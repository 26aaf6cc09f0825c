"""A small step, compiled by libtpu for chips that are not there; skipped without libtpu."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    "--config.data.buckets=((64,64),)", "--config.model.backbone=resnet18",
    "--config.model.width=8", "--config.model.fpn_channels=16", "--config.model.head_channels=16",
    "--config.model.head_convs=1", "--config.data.max_boxes=8", "--classes=3",
]  # fmt: skip

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="needs libtpu: pip install '.[tpu]'"
)


def run(*arguments):
    """A process of its own: jax and libtpu start with the command's environment."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def compile_for(topology, *flags):
    command = "-m", "retina_jax.main", "compile", "--config=experiments/coco.py"
    return run(*command, f"--topology={topology}", *SMALL, *flags)


def test_a_small_step_compiles_and_stays_far_below_the_limit():
    done = compile_for("v5e:2x2x1", "--compilations=1")
    assert done.returncode == 0, done.stderr
    rows = {line[:34].strip(): line[34:].split() for line in done.stdout.splitlines()}
    assert rows["images per device"] == ["4", "4"]
    assert rows["fits"] == ["yes", "yes"]
    assert 0 < float(rows["total"][0]) < 1
    # the old state's memory is used for the new one, as in training
    assert rows["of which reused by outputs"][0] == rows["memory: arguments, GiB"][0]
    assert "HBM traffic of train, largest sources:" in done.stdout
    assert "compiling train 64×64, 4 images per device" in done.stderr


SLICES = {
    "v4:2x2x1": 4, "v4:2x2x2": 8, "v5e:1x1": 1, "v5e:2x1": 2, "v5e:2x2": 4, "v5e:2x2x1": 4,
    "v5e:4x4": 16, "v5p:2x2x1": 4, "v5p:2x2x2": 8, "v6e:1x1": 1, "v6e:2x2": 4, "v6e:2x2x1": 4,
    "v6e:16x16": 256, "tpu7x:2x2x1": 8,
}  # fmt: skip
"""Spellings that libtpu knows, and their devices."""


def test_the_spellings_of_slices():
    code = (
        "import os; from retina_jax.jobs.compile import ENVIRONMENT\n"
        "os.environ.update(ENVIRONMENT)\n"
        "from retina_jax.compiling.chips import open_slice\n"
        f"for name in {list(SLICES)}: print(name, len(open_slice(name).devices))"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} {count}" for name, count in SLICES.items()]


def test_a_shape_that_no_slice_has_is_one_line():
    done = compile_for("v5e:3x3")
    assert done.returncode == 2
    assert "--topology=v5e:3x3: " in done.stderr.splitlines()[-1]
    assert "v6e:2x2x1" in done.stderr.splitlines()[-1]
