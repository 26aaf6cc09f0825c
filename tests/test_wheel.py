"""The wheel: a user without a checkout, in an empty folder."""

import configparser
import json
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support import SMALLEST, on_one_device

REPOSITORY = Path(__file__).resolve().parent.parent


def test_every_package_is_listed():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    listed = set(settings["options"]["packages"].split())
    folders = (REPOSITORY / "retina_jax").rglob("__init__.py")
    there = {".".join(f.parent.relative_to(REPOSITORY).parts) for f in folders}
    scripts = {"retina_jax.scripts.cluster", "retina_jax.scripts.tpu"}
    assert listed == there | scripts | {"retina_jax.experiments"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A fresh environment with the wheel; dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    # pip takes what PYTHONPATH shows for installed
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder,
         REPOSITORY],
        check=True,
    )  # fmt: skip
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel],
        check=True,
        env=variables,
    )
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    site = environment / "lib" / name / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return environment / "bin"


def environment_of(installed):
    environment = {k: v for k, v in on_one_device().items() if k != "PYTHONPATH"}
    return {**environment, "PATH": f"{installed}:{environment['PATH']}"}


def run(installed, folder, *arguments):
    done = subprocess.run(
        [installed / "retina-jax", *map(str, arguments)],
        cwd=folder,
        env=environment_of(installed),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_wheel_has_experiments_without_results(installed):
    (folder,) = installed.parent.glob("lib/*/site-packages/retina_jax/experiments")
    assert {p.name for p in folder.glob("*.py")} == {
        p.name for p in (REPOSITORY / "experiments").glob("*.py")
    }
    assert not (folder / "results").exists()
    assert (folder.parent / "py.typed").exists()


def test_the_wheel_has_the_scripts_of_jobs(installed, tmp_path):
    image = ["--image=i", "--accelerator=v6e-8", "--mount=h:/e:/runs"]
    done = run(installed, tmp_path, "launch", "--kind=queued-resource", *image, "--dry-run",
               "--", "train", "--workdir=/runs/r")  # fmt: skip
    (copied,) = [line for line in done.stdout.splitlines() if " scp " in line]
    assert Path(copied.split(" scp ")[1].split()[0]).is_file()
    done = run(installed, tmp_path, "launch", "--kind=slurm", "--dry-run", "--", "train")
    assert "scontrol requeue" in done.stdout


def test_a_wheel_does_all_that_the_readme_promises(installed, odd_folder, tmp_path):
    """The doctor and train by the commands that prepare prints, from a shell."""
    prepared = run(installed, tmp_path, "prepare", "coco", "--images", odd_folder / "images",
                   "--annotations", odd_folder / "x_train.json",
                   "--annotations", odd_folder / "x_test.json",
                   "--out", odd_folder / "wheel's data")  # fmt: skip
    printed = [line.strip() for line in prepared.stderr.splitlines() if "--config=" in line]
    examine, train = printed
    assert examine.startswith("retina-jax doctor --config=experiments/custom.py ")
    assert train.startswith("retina-jax train --config=experiments/custom.py ")
    for line in printed:
        done = subprocess.run(
            f"{line} {shlex.join(SMALLEST)}", shell=True, cwd=tmp_path, capture_output=True,
            text=True, env=environment_of(installed),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "doctor/doctor.html").exists()
    metrics = tmp_path / "runs/custom/eval/1/metrics.json"
    written = json.loads(metrics.read_text())
    assert (written["step"], written["images"]) == (1, 16)
    metrics.unlink()
    run(installed, tmp_path, "evaluate", "--workdir=runs/custom")
    assert json.loads(metrics.read_text()) == written
    assert (metrics.parent / "report.html").exists()
    run(installed, tmp_path, "draw", "--workdir=runs/custom", "--count=1", "--out=sheet.png")
    assert (tmp_path / "sheet.png").exists()
