"""The wheel: a user without a checkout, in an empty folder."""

import configparser
import json
import os
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


def run(installed, folder, *arguments):
    environment = {k: v for k, v in on_one_device().items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [installed / "retina-jax", *map(str, arguments)],
        cwd=folder,
        env={**environment, "PATH": f"{installed}:{environment['PATH']}"},
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


def test_the_wheel_has_the_scripts_of_jobs(installed, tmp_path):
    image = ["--image=i", "--accelerator=v6e-8", "--mount=h:/e:/runs"]
    done = run(installed, tmp_path, "launch", "--kind=queued-resource", *image, "--dry-run",
               "--", "train", "--workdir=/runs/r")  # fmt: skip
    (copied,) = [line for line in done.stdout.splitlines() if " scp " in line]
    assert Path(copied.split(" scp ")[1].split()[0]).is_file()
    done = run(installed, tmp_path, "launch", "--kind=slurm", "--dry-run", "--", "train")
    assert "scontrol requeue" in done.stdout


def test_a_wheel_does_all_that_the_readme_promises(installed, two_aspects, tmp_path):
    source = two_aspects.parent
    prepared = run(installed, tmp_path, "prepare", "coco", "--images", source / "images",
                   "--annotations", source / "instances_train.json",
                   "--annotations", source / "instances_val.json", "--out", "data")  # fmt: skip
    assert "retina-jax doctor --config=experiments/custom.py" in prepared.stderr
    experiment = ["--config=experiments/custom.py", "--config.data.dir=data"]
    run(installed, tmp_path, "doctor", *experiment, *SMALLEST)
    assert (tmp_path / "doctor/doctor.html").exists()
    run(installed, tmp_path, "train", *experiment, *SMALLEST, "--workdir=w")
    run(installed, tmp_path, "evaluate", *experiment, *SMALLEST, "--workdir=w")
    assert json.loads((tmp_path / "w/eval/1/metrics.json").read_text())["step"] == 1
    assert (tmp_path / "w/eval/1/report.html").exists()
    run(installed, tmp_path, "draw", "--workdir=w", "--count=1", "--out=sheet.png")
    assert (tmp_path / "sheet.png").exists()
