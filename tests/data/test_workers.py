"""Workers that die, that find a bad picture, and that are stopped early."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retina_jax.data.data_set import open_split
from retina_jax.data.loader import TrainLoader
from retina_jax.errors import RunError, UserError
from retina_jax.prepare.shapes import open_data_set

REPOSITORY = Path(__file__).resolve().parents[2]


def workers_of(process):
    """Processes that a loader of this process has started."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"spawn_main" in command:
                found.append(child)
    return found


@pytest.fixture
def loader(tiny_config):
    tiny_config.data.num_workers = 2
    split = open_split(open_data_set(tiny_config.data.dir, "shapes"), "train")
    return TrainLoader(split, tiny_config)


def test_a_worker_that_dies_is_an_error_within_seconds(loader):
    batches = loader.batches(0, 10**6)
    next(batches)
    os.kill(workers_of(os.getpid())[-1], signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(RunError, match=r"a worker of the loader died \(exit code -9"):
        for _ in batches:
            pass
    assert time.monotonic() - started < 30
    assert workers_of(os.getpid()) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_rotted_is_one_line(tiny_config, workers, tmp_path):
    from retina_jax.prepare import shapes

    directory = shapes.build(tmp_path, {"train": 16})
    (shard,) = directory.glob("*.array_record*")
    content = bytearray(shard.read_bytes())
    place = content.find(b"IDAT") + 30
    content[place : place + 200] = bytes(200)
    tiny_config.data.num_workers = workers
    split = open_split(directory, "train")
    shard.write_bytes(content)
    with pytest.raises((UserError, RunError)) as caught:
        list(TrainLoader(split, tiny_config).batches(0, 4))
    assert "prepare the data set anew" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "end", ["batches.close()", "last = list(batches)", "os.kill(os.getpid(), 9)"]
)
def test_a_loader_leaves_nothing_behind(shapes_dir, end):
    code = f"""
import os, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from experiments.shapes import get_config
from retina_jax.data.loader import TrainLoader
from retina_jax.data.data_set import open_split
from retina_jax.prepare.shapes import open_data_set

if __name__ == "__main__":
    config = get_config()
    config.data.dir = {str(shapes_dir)!r}
    config.data.num_workers = 2
    split = open_split(open_data_set(config.data.dir, "shapes"), "train")
    batches = TrainLoader(split, config).batches(0, 12)
    for _ in range(3):
        kept = next(batches)
    {end}
"""
    before = set(os.listdir("/dev/shm"))
    script = Path(shapes_dir) / "left_early.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == (-9 if "kill" in end else 0)
    if "kill" not in end:  # Python's own tracker frees, and says, what was under way
        assert "leaked" not in done.stderr
    for _ in range(400):
        left = {n for n in set(os.listdir("/dev/shm")) - before if n.startswith("psm_")}
        if not left:
            break
        time.sleep(0.1)
    assert left == set()
