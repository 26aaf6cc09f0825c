"""A run that is killed again and again ends as one that never was: bit for bit."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from retina_jax.errors import UserError
from retina_jax.progress import Reporter
from retina_jax.training import lease
from retina_jax.training.checkpoint import DAMAGED, FOLDER, Checkpoints
from retina_jax.training.lease import Lease
from tests.faults.processes import REPOSITORY, Run, losses

pytestmark = pytest.mark.faults

MOMENTS = int(os.environ.get("RETINA_JAX_KILLS", "4"))
"""Number of kills of one run, and half as many of a run of two processes."""
FIELDS = {"train__steps": 24, "train__checkpoint_every": 3, "train__log_every": 2, "eval__every": 8}


COMPILING = {"JAX_ENABLE_COMPILATION_CACHE": "0"}
"""So that the first step compiles, and does not only read what another run has compiled."""


def state_of(workdir):
    """All arrays of the last checkpoint, optimiser included."""
    checkpoints = Checkpoints(workdir)
    step = checkpoints.latest_step()
    tree = checkpoints._restore_as_saved(step, checkpoints._manager.item_metadata(step).tree)
    checkpoints.close()
    return step, jax.tree.leaves_with_path(tree)


def assert_same_end(ours, theirs):
    (step, mine), (other_step, others) = state_of(ours), state_of(theirs)
    assert step == other_step == FIELDS["train__steps"]
    for (path, array), (other_path, other) in zip(mine, others, strict=True):
        assert path == other_path
        np.testing.assert_array_equal(array, other, err_msg=str(path))
    assert losses(ours) == losses(theirs)
    for metrics in sorted(Path(theirs).glob("eval/*/metrics.json")):
        own = Path(ours) / metrics.relative_to(theirs)
        assert json.loads(own.read_text()) == json.loads(metrics.read_text())


@pytest.fixture(scope="module")
def undisturbed(shapes_dir, tmp_path_factory):
    """The workdir of a run that nobody killed, for 1 and for 2 processes."""
    done = {}

    def run(count):
        if count not in done:
            folder = tmp_path_factory.mktemp("undisturbed")
            with Run(folder, shapes_dir, count, 2, **FIELDS) as processes:
                codes, printed = processes.end()
                assert codes == [0] * count, printed
            done[count] = folder
        return done[count]

    return run


def writing_checkpoint(run, _):
    return {p for p in (run.workdir / FOLDER).glob("*") if "tmp" in p.name}


def evaluating(run, before):
    later = {"two lines"} if run.steps() >= before + 2 else set()
    return set(run.workdir.glob("eval/*/.*")) | later


def logging(run, before):
    return {"a line"} if run.steps() > before else set()


MOMENT_KINDS = (logging, writing_checkpoint, evaluating)
"""What can be seen while it happens, given the number of lines in the log at the start."""


def kill_at(run, kind, delay, victim):
    """Kills when ``kind`` happens, and ``delay`` seconds later; False if the run ended first."""
    steps = run.steps()
    left_by_the_last = kind(run, steps)
    while not kind(run, steps) - left_by_the_last:
        if any(p.poll() is not None for p in run.processes):
            return False
        time.sleep(0.002)
    time.sleep(delay)
    run.processes[victim].kill()
    return run.processes[victim].wait() == -signal.SIGKILL


@pytest.mark.parametrize("count", [1, 2])
def test_killed_at_random_moments_it_ends_bit_for_bit_the_same(
    undisturbed, shapes_dir, tmp_path, count
):
    rng = np.random.default_rng(count)
    kills = MOMENTS // count
    for moment in range(kills):
        kind = MOMENT_KINDS[moment % len(MOMENT_KINDS)]
        with Run(tmp_path, shapes_dir, count, 2, **FIELDS) as run:
            killed = kill_at(run, kind, rng.uniform(0, 0.2), int(rng.integers(count)))
            codes, printed = run.end()
        assert all(code in (1, -signal.SIGKILL) for code in codes) or not killed, printed
    with Run(tmp_path, shapes_dir, count, 2, **FIELDS) as run:
        codes, printed = run.end()
        assert codes == [0] * count, printed
    assert_same_end(tmp_path, undisturbed(count))


@pytest.mark.parametrize("damage", ["truncated", "corrupt", "no metadata"])
def test_a_damaged_checkpoint_is_kept_aside_and_the_one_before_goes_on(
    undisturbed, shapes_dir, tmp_path, damage
):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed(1), workdir)
    newest = workdir / FOLDER / str(FIELDS["train__steps"])
    damaged_files = break_checkpoint(newest, damage)
    with Run(workdir, shapes_dir, 1, 2, **FIELDS) as run:
        codes, printed = run.end()
    assert codes == [0], printed
    assert f"the checkpoint of step {FIELDS['train__steps']} is damaged" in printed[0]
    assert {p.name for p in (workdir / DAMAGED).iterdir()} == {newest.name}
    assert damaged_files
    assert_same_end(workdir, undisturbed(1))


def break_checkpoint(folder, damage):
    if damage == "no metadata":
        files = list(folder.rglob("_METADATA*"))
        for path in files:
            path.unlink()
        return files
    data = [p for p in folder.rglob("*") if p.is_file() and p.parent.name == "d"]
    for path in data:
        content = path.read_bytes()
        cut = content[: len(content) // 2]
        path.write_bytes(cut if damage == "truncated" else cut + bytes(len(content) - len(cut)))
    return data


def test_if_all_checkpoints_are_damaged_nothing_is_moved(undisturbed, shapes_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed(1), workdir)
    there = sorted(p.name for p in (workdir / FOLDER).iterdir())
    for step in there:
        break_checkpoint(workdir / FOLDER / step, "truncated")
    with Run(workdir, shapes_dir, 1, 2, **FIELDS) as run:
        codes, printed = run.end()
    assert codes == [1], printed
    assert f"stopped: no checkpoint in {workdir / FOLDER} can be read" in printed[0]
    assert "retina_jax/" not in printed[0]  # no traceback but what TensorStore's threads may print
    assert sorted(p.name for p in (workdir / FOLDER).iterdir()) == there


def test_changed_data_are_refused_unless_a_flag_accepts_them(undisturbed, tmp_path):
    from retina_jax.prepare import shapes

    other = shapes.build(tmp_path / "data", {"train": 25, "validation": 10}).parents[1]
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed(1), workdir)
    with Run(workdir, other, 1, 2, **FIELDS) as run:
        codes, printed = run.end()
    assert codes == [2], printed
    assert "--config.data.allow_changes=True" in printed[0]
    assert "split train have changed since the last checkpoint" in printed[0]
    with Run(workdir, other, 1, 2, **FIELDS, data__allow_changes=True) as run:
        codes, printed = run.end()
    assert codes == [0], printed
    assert "note: the annotations and images of" in printed[0]


def test_a_stop_while_nothing_has_changed_ends_at_once(shapes_dir, tmp_path):
    with Run(tmp_path, shapes_dir, 1, 2, environment=COMPILING, **FIELDS) as run:
        run.wait_until(lambda: (tmp_path / "config.json").exists())
        run.processes[0].send_signal(signal.SIGTERM)
        started = time.monotonic()
        codes, printed = run.end()
    assert codes == [143], printed
    assert "nothing has changed since the last checkpoint" in printed[0]
    assert time.monotonic() - started < 10
    assert not (tmp_path / lease.FILE).exists()


def test_a_run_that_is_stuck_says_where_and_ends(shapes_dir, tmp_path):
    fields = {**FIELDS, "train__steps": 10**6, "train__watchdog": 5.0, "data__num_workers": 1}
    with Run(tmp_path, shapes_dir, 1, 1, **fields) as run:
        run.wait_until(lambda: run.steps() >= 1)
        (main,) = run.processes
        children = []
        for thread in Path(f"/proc/{main.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended since
                children += map(int, (thread / "children").read_text().split())
        assert children
        for child in children:  # the loader's worker no longer answers, but lives
            os.kill(child, signal.SIGSTOP)
        main.wait(120)
        for child in children:  # they hold the other end of what it printed
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        codes, printed = run.end()
    assert codes == [1], printed
    last = printed[0].strip().splitlines()[-1]
    assert last.startswith("stopped: no progress for 5 s after step")
    assert "Thread 0x" in printed[0]
    assert "retina_jax/training/loop.py" in printed[0]


def hold(folder, seconds):
    """A program that holds the lease of ``folder``."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from retina_jax.progress import Reporter\n"
        "from retina_jax.training import lease\n"
        "with lease.Lease(Path(sys.argv[1]), Reporter()):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(float(sys.argv[2]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, folder, str(seconds)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_a_workdir_in_use_is_refused_and_free_again_after_a_kill(tmp_path):
    process = hold(tmp_path, 600)
    with pytest.raises(UserError, match=f"in use by process {process.pid} on host"):
        Lease(tmp_path, Reporter()).__enter__()
    process.kill()
    process.communicate()
    with Lease(tmp_path, Reporter()):  # the process has certainly ended: no waiting
        assert json.loads((tmp_path / lease.FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / lease.FILE).exists()


def test_the_lease_of_another_host_is_taken_over_once_it_is_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "STALE_AFTER", 2.0)
    started = time.monotonic()
    (tmp_path / lease.FILE).write_text('{"host": "elsewhere", "pid": 1, "token": "x"}')
    with Lease(tmp_path, Reporter()):
        assert 1.5 < time.monotonic() - started < 30


def test_the_lease_of_another_host_that_is_renewed_is_refused(tmp_path):
    path = tmp_path / lease.FILE
    path.write_text('{"host": "elsewhere", "pid": 1, "token": "x"}')
    renewing = subprocess.Popen(["sh", "-c", f"while sleep 1; do touch '{path}'; done"])
    try:
        with pytest.raises(UserError, match="in use by process 1 on host elsewhere"):
            Lease(tmp_path, Reporter()).__enter__()
    finally:
        renewing.kill()
        renewing.wait()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_a_lease_that_cannot_be_read_becomes_stale_too(tmp_path, monkeypatch, content):
    monkeypatch.setattr(lease, "STALE_AFTER", 0.5)
    (tmp_path / lease.FILE).write_text(content)
    with Lease(tmp_path, Reporter()):
        pass


def test_of_two_programs_that_take_over_a_stale_lease_one_goes_on(tmp_path, monkeypatch):
    """The other removes the new lease in place of the stale one, and writes its own."""
    monkeypatch.setattr(lease, "STALE_AFTER", 0.0)
    path = tmp_path / lease.FILE
    path.write_text('{"host": "elsewhere", "pid": 1, "token": "x"}')

    def meanwhile(seconds):
        path.write_text(json.dumps({**lease.identity(), "token": "of the other"}))

    monkeypatch.setattr(lease.time, "sleep", meanwhile)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on host"):
        Lease(tmp_path, Reporter()).__enter__()
    assert json.loads(path.read_text())["token"] == "of the other"
