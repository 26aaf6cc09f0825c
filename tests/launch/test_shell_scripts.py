"""The shell scripts and the Dockerfile: linted, and with no project, region or credential."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = sorted([*REPOSITORY.glob("scripts/tpu/*.sh"), *REPOSITORY.glob("scripts/cluster/*.sh")])
DOCKERFILE = REPOSITORY / "scripts/cluster/Dockerfile"


def linter(name):
    """A linter of the test extra; skips only if its package has no build for this machine."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return found or pytest.skip(f"needs {name}")


def test_there_are_scripts():
    assert [path.name for path in SCRIPTS] == ["slurm.sh", "start.sh"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_are_linted(path):
    subprocess.run(["bash", "-n", path], check=True)
    subprocess.run([linter("shellcheck"), path], check=True)


def test_the_scripts_that_are_printed_are_linted(launch, tmp_path):
    image = ["--image=i", "--accelerator=v6e-8", "--slices=2", "--mount=h:/e $x:/runs"]
    for kind in (["slurm"], ["queued-resource", *image]):
        _, script, _ = launch("--kind", *kind, "--dry-run", "--", "train", "--workdir=/runs/$x y")
        path = tmp_path / "script"
        path.write_text(script)
        subprocess.run(["bash", "-n", path], check=True)
        subprocess.run([linter("shellcheck"), "--severity=warning", path], check=True)


def test_the_dockerfile_is_linted():
    subprocess.run([linter("hadolint"), DOCKERFILE], check=True)


def test_the_image_has_what_it_copies_and_an_unprivileged_user():
    text = DOCKERFILE.read_text()
    copied = " ".join(re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)).split()
    kept = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied
    for name in copied:
        assert (REPOSITORY / name).exists()
        assert f"!{name}" in kept
    assert re.search(r"^USER 1000$", text, re.MULTILINE)
    for extra in re.search(r"^\s+(\w+ \| \w+)\) target", text, re.MULTILINE)[1].split(" | "):
        assert re.search(rf"^{extra} =$", (REPOSITORY / "setup.cfg").read_text(), re.MULTILINE)


def test_no_project_region_or_credential():
    files = [*SCRIPTS, DOCKERFILE, *(REPOSITORY / "retina_jax/launch").glob("*.py"),
             REPOSITORY / "retina_jax/jobs/launch.py"]  # fmt: skip
    private = r"(us|europe|asia)-[a-z]+\d|AIza|BEGIN [A-Z ]*KEY|iam\.gserviceaccount|projects/\w"
    for file in files:
        assert not re.search(private, file.read_text()), file
