"""What prepare and the doctor print for a user runs as it is printed, from a shell.

`test_wheel` runs the two commands that prepare prints.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import SMALLEST, on_one_device

REPOSITORY = Path(__file__).resolve().parents[2]


def shell(line, folder):
    """Runs a line as typed; the package is this one."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        line, shell=True, cwd=folder, capture_output=True, text=True,
        env={**on_one_device(), "PYTHONPATH": path},
    )  # fmt: skip


@pytest.fixture(scope="module")
def prepared(odd_folder):
    out = shlex.quote(str(odd_folder / "out"))
    done = shell(
        f"{shlex.quote(sys.executable)} -m retina_jax.main prepare coco --images images "
        f"--annotations x_train.json --annotations x_test.json --out {out}",
        odd_folder,
    )
    assert done.returncode == 0, done.stderr
    return [line.strip() for line in done.stderr.splitlines() if "--config=" in line]


def test_the_commands_of_prepare_name_the_splits_that_exist(prepared):
    assert len(prepared) == 2
    assert all("--config.data.eval_split=test" in line for line in prepared)
    assert not any("train_split" in line for line in prepared)


def test_the_flags_that_the_doctor_suggests_run_and_help(prepared, tmp_path):
    examine = prepared[0].replace("custom.py", "custom.py:paper")  # ATSS needs no such flags
    small = [*SMALLEST, "--config.anchors.scale=16.0"]
    before = shell(f"{examine} {shlex.join(small)} --out=before", tmp_path)
    said = re.search(r"with (--config\.\S+(?: --config\.\S+)*)", before.stdout)
    assert said, before.stdout
    after = shell(f"{examine} {shlex.join(small)} {said[1]} --out=after", tmp_path)
    assert after.returncode == 0, after.stderr
    worst = [
        min(
            row["foreground"]
            for row in json.loads((tmp_path / name / "doctor.json").read_text())["splits"][0][
                "classes"
            ]
        )
        for name in ("before", "after")
    ]
    assert worst[1] > worst[0]


def test_the_command_in_an_error_is_one_that_exists(odd_folder, tmp_path):
    done = shell(
        f"{shlex.quote(sys.executable)} -m retina_jax.main train --workdir=w "
        f"--config=experiments/custom.py --config.data.dir={shlex.quote(str(odd_folder / 'no'))}",
        tmp_path,
    )
    assert done.returncode == 2
    advice = done.stderr.split("prepare a data set with: ")[1].strip()
    for word in ("IMAGES", "train.json", "val.json"):
        assert word in advice
    source = shlex.quote(str(odd_folder))
    typed = advice.replace("IMAGES", f"{source}/images")
    typed = typed.replace("train.json", f"{source}/x_train.json")
    done = shell(typed.replace("val.json", f"validation={source}/x_test.json"), tmp_path)
    assert done.returncode == 0, done.stderr
