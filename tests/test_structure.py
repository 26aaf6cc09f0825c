"""The house rules that no linter knows: devices behind one door, files of a readable size."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "retina_jax"
OF_DEVICES = {"pmap", "devices", "local_devices", "device_count", "local_device_count",
              "distributed", "topologies"}  # fmt: skip
MOST_LINES = 400


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def named(path):
    return path.relative_to(PACKAGE).as_posix()


def uses_of_devices(source):
    """Names of ``jax`` that tell of devices or processes, however they are reached."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [node.attr] if node.value.id == "jax" else []
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jax":
            names = [*(alias.name for alias in node.names), *node.module.split(".")[1:]]
        elif isinstance(node, ast.Import):
            names = [part for a in node.names if a.name.startswith("jax.")
                     for part in a.name.split(".")[1:]]  # fmt: skip
        else:
            continue
        found += [n for n in names if n in OF_DEVICES or n.startswith("process_")]
    return found


@pytest.mark.parametrize("path", modules(), ids=named)
def test_only_parallel_knows_of_devices_and_processes(path):
    found = uses_of_devices(path.read_text())
    assert bool(found) == (named(path) == "parallel.py"), found


@pytest.mark.parametrize(
    "line",
    [
        "jax.pmap(f)",
        "n = jax.process_count()",
        "from jax import local_devices",
        "import jax.distributed",
        "from jax.distributed import initialize",
        "from jax.experimental import topologies",
    ],
)
def test_every_way_to_a_device_is_seen(line):
    assert uses_of_devices(f"import jax\n{line}\n")


@pytest.mark.parametrize("path", modules(), ids=named)
def test_files_are_of_a_readable_size(path):
    lines = len(path.read_text().splitlines())
    assert lines <= (99 if named(path) == "main.py" else MOST_LINES)


def test_tests_mirror_the_package():
    packages = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    folders = {p.name for p in (REPOSITORY / "tests").iterdir() if p.is_dir()} - {"__pycache__"}
    assert folders - packages == {"parity", "faults"}
