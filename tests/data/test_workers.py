"""Workers that die, that find a bad picture, and that are stopped early."""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from grain.multiprocessing import SharedMemoryArray

from retina_jax.data import handover
from retina_jax.data.data_set import open_split
from retina_jax.data.loader import TrainLoader
from retina_jax.errors import RunError, UserError
from retina_jax.prepare.shapes import open_data_set

REPOSITORY = Path(__file__).resolve().parents[2]


def workers_of(process):
    """Processes that a loader of this process has started."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
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
    # no clock: a machine under load may be slow, and one that waits for ever meets pytest's limit
    with pytest.raises(RunError, match=r"a loader worker died \(exit code -9"):
        for _ in batches:
            pass
    wait_until(lambda: workers_of(os.getpid()) == [])


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
    assert "prepare the data set again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "end", ["batches.close()", "last = list(batches)", "os.kill(os.getpid(), 9)"]
)
def test_a_loader_leaves_nothing_behind(shapes_dir, end):
    prefix = f"psm_{os.getpid()}_{len(end)}_"  # other programs' names are none of ours
    code = f"""
import os, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from multiprocessing import shared_memory
shared_memory._SHM_NAME_PREFIX = "/{prefix}"
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
    script = Path(shapes_dir) / "left_early.py"
    script.write_text(code)
    # returns when its workers have ended, too: they write to the same pipes
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600)
    assert done.returncode == (-9 if "kill" in end else 0), done.stderr
    if "kill" not in end:  # Python's own tracker frees its queues' semaphores, and says so
        assert "leaked" not in done.stderr
    assert [name for name in os.listdir("/dev/shm") if name.startswith(prefix)] == []


@pytest.mark.faults
def test_a_program_killed_at_fifty_moments_leaves_nothing_behind(shapes_dir):
    command = [sys.executable, REPOSITORY / "tests/data/killed_programs.py", shapes_dir]
    command += [f"psm_{os.getpid()}_"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    received = json.loads(done.stdout)
    assert len(received) == 50
    assert sum(count > 0 for count in received) >= 30  # killed between batches, not before them


def waiting_blocks(process):
    """Number of batches that a worker holds and nobody has opened yet."""
    found = set()
    for entry in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.readlink(entry).startswith("/memfd:retina_jax"):
                with open(entry, "rb") as file:
                    status = os.fstat(file.fileno())
                    opened = status.st_size and os.pread(file.fileno(), 1, status.st_size - 1)
                    if opened != b"\1":  # or without a size yet: it was made just now
                        found.add(status.st_ino)
    return len(found)


def mapped_blocks():
    """Number of batches of workers that this process has opened."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split()[4] for line in lines if "/memfd:retina_jax" in line})


def wait_until(reached):
    """For what comes by itself; the deadline only ends a test that fails."""
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def blocks_of_other_tests():
    """Blocks that something in this process still holds, such as a traceback."""
    gc.collect()
    return mapped_blocks()


def test_workers_hold_four_batches_each_whatever_the_cores(tiny_config, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 100)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(100))
    tiny_config.data.num_workers = 2
    split = open_split(open_data_set(tiny_config.data.dir, "shapes"), "train")
    others = blocks_of_other_tests()
    with contextlib.closing(TrainLoader(split, tiny_config).batches(0, 10**6)) as batches:
        next(batches)
        workers = workers_of(os.getpid())
        assert len(workers) == 2
        for _ in range(20):
            # one that is being filled or waits for its place in the queue, and one there
            wait_until(lambda: [waiting_blocks(worker) for worker in workers] == [2, 2])
            # two here for each: one that waits for its place in Grain's buffer, and one there
            wait_until(lambda: mapped_blocks() == others + 4)
            next(batches)


def test_a_batch_of_a_worker_that_has_died_is_the_same_error(loader):
    others = blocks_of_other_tests()
    batches = loader.batches(0, 10**6)
    next(batches)
    workers = workers_of(os.getpid())
    wait_until(lambda: [waiting_blocks(worker) for worker in workers] == [2, 2])
    wait_until(lambda: mapped_blocks() == others + 4)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
        os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
    # both have left a batch in their queues that cannot be opened: closing must not stumble
    with pytest.raises(RunError, match=r"a loader worker died \(exit code -9"):
        assert all(batch.images.shape[0] == 8 for batch in batches)
    wait_until(lambda: workers_of(os.getpid()) == [])


def test_without_memory_that_has_no_name_grain_copies(tiny_config, monkeypatch):
    split = open_split(open_data_set(tiny_config.data.dir, "shapes"), "train")
    expected = list(TrainLoader(split, tiny_config).batches(0, 3))
    monkeypatch.delattr(os, "memfd_create")
    tiny_config.data.num_workers = 1
    for batch, other in zip(TrainLoader(split, tiny_config).batches(0, 3), expected, strict=True):
        assert isinstance(batch.images, SharedMemoryArray)
        jax.tree.map(np.testing.assert_array_equal, batch, other)


def test_no_room_for_workers_is_an_error_before_the_first_step(tiny_config, monkeypatch):
    split = open_split(open_data_set(tiny_config.data.dir, "shapes"), "train")
    monkeypatch.setattr(handover.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    TrainLoader(split, tiny_config)  # without workers none is needed
    tiny_config.data.num_workers = 2
    with pytest.raises(UserError, match=r"needs 0.5 MiB in /dev/shm, but only 0.0 MiB is free"):
        TrainLoader(split, tiny_config)
    monkeypatch.undo()
    monkeypatch.setattr(handover, "free_memory", lambda: 2**20)
    tiny_config.data.float_pixels = True
    with pytest.raises(
        UserError,
        # 2 workers × 4 batches × 8 pictures of 128 × 128 × 3 float32
        match=r"num_workers=2 needs 12.0 MiB of memory for 4 batches of 1.5 MiB per worker",
    ):
        TrainLoader(split, tiny_config)
