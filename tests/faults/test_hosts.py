"""One run as several processes: the same numbers, and nobody waits for ever."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from retina_jax.training.checkpoint import Checkpoints
from tests.faults.processes import Run, losses, said

pytestmark = pytest.mark.faults

GROUP = {"model__norm": "group"}


def arrays(workdir, step):
    checkpoints = Checkpoints(workdir)
    tree = checkpoints.restore_weights(step)
    checkpoints.close()
    return jax.tree.leaves(tree)


def assert_same_metrics(ours, theirs):
    """Up to detections whose scores change places by rounding."""
    ours, theirs = jax.tree.leaves_with_path(ours), jax.tree.leaves_with_path(theirs)
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    np.testing.assert_allclose([x for _, x in ours], [x for _, x in theirs], atol=1e-3)


@pytest.fixture(scope="module")
def three_ways(shapes_dir, tmp_path_factory):
    """The workdirs of 20 steps on 1 process of 4 devices, 2 of 2, and 4 of 1."""
    folder = tmp_path_factory.mktemp("ways")
    for count in (1, 2, 4):
        with Run(folder / str(count), shapes_dir, count, **GROUP) as run:
            codes, printed = run.end()
            assert codes == [0] * count, printed
    return folder


def test_the_number_of_processes_changes_no_number(three_ways):
    one = losses(three_ways / "1")
    assert len(one) == 20
    for count in ("2", "4"):
        for ours, theirs in zip(losses(three_ways / count), one, strict=True):
            for name in ("step", "loss", "loss_classification", "loss_box"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
            assert ours["foreground_anchors"] == theirs["foreground_anchors"]
            assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
        for ours, theirs in zip(
            arrays(three_ways / count, 20), arrays(three_ways / "1", 20), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        metrics = json.loads((three_ways / count / "eval/20/metrics.json").read_text())
        assert_same_metrics(
            metrics, json.loads((three_ways / "1/eval/20/metrics.json").read_text())
        )


def test_two_processes_evaluate_what_one_has_trained(three_ways, shapes_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(three_ways / "1", workdir)
    shutil.rmtree(workdir / "eval")
    with Run(workdir, shapes_dir, 2, command="evaluate", **GROUP) as run:
        codes, printed = run.end()
    assert codes == [0, 0], printed
    ours, theirs = (
        {
            name: json.loads((folder / "eval/20" / f"{name}.json").read_text())
            for name in ("metrics", "detections")
        }
        for folder in (workdir, three_ways / "1")
    )
    assert_same_metrics(ours["metrics"], theirs["metrics"])
    rows = [
        np.array(
            [[d["image_id"], d["category_id"], d["score"], *d["bbox"]] for d in x["detections"]]
        )
        for x in (ours, theirs)
    ]
    assert rows[0].shape == rows[1].shape
    # in any order: after 20 steps, scores differ by less than rounding does
    apart = np.abs(rows[0][:, None] - rows[1][None]).max(axis=-1).min(axis=1)
    assert (apart < 0.01).mean() > 0.99


def test_a_stop_on_one_host_stops_all_at_the_same_step_and_one_process_goes_on(
    three_ways, shapes_dir, tmp_path
):
    with Run(tmp_path, shapes_dir, 2, train__steps=10**6, **GROUP) as run:
        run.wait_until(lambda: run.steps() >= 3)
        run.processes[1].send_signal(signal.SIGTERM)
        codes, printed = run.end()
    assert codes == [143, 143], printed
    assert "stopped by SIGTERM; checkpoint saved in" in printed[0]
    assert said(printed[1]) == ""
    checkpoints = Checkpoints(tmp_path)
    step = checkpoints.latest_step()
    checkpoints.close()
    assert step == len(losses(tmp_path)) >= 3
    with Run(tmp_path, shapes_dir, 1, train__steps=max(20, step), **GROUP) as run:
        codes, printed = run.end()
    assert codes == [0], printed
    assert f"resuming from step {step} of" in printed[0]
    for ours, theirs in zip(losses(tmp_path), losses(three_ways / "1"), strict=False):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_two_processes_go_on_from_a_checkpoint_of_one(three_ways, shapes_dir, tmp_path):
    with Run(tmp_path, shapes_dir, 1, train__steps=10, **GROUP) as run:
        assert run.end()[0] == [0]
    with Run(tmp_path, shapes_dir, 2, **GROUP) as run:
        codes, printed = run.end()
    assert codes == [0, 0], printed
    ours, theirs = losses(tmp_path), losses(three_ways / "2")
    assert len(ours) == 20
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.parametrize("lost", [1, 0])
def test_a_killed_host_is_named_by_the_other_which_ends_too(shapes_dir, tmp_path, lost):
    with Run(tmp_path, shapes_dir, 2, train__steps=10**6, **GROUP) as run:
        run.wait_until(lambda: run.steps() >= 2)
        run.processes[lost].kill()
        started = time.monotonic()
        codes, printed = run.end()
        assert time.monotonic() - started < 60
    assert codes[1 - lost] == 1, printed
    named = [line for line in printed[1 - lost].splitlines() if f"(process {lost})" in line][-1]
    assert "has not answered for" in named or "cannot be reached" in named
    assert "run the same command again on all hosts" in named


def test_an_error_on_one_host_ends_all_with_its_message(shapes_dir, tmp_path):
    """A damaged file of one host's copy of the data."""
    copy = tmp_path / "copy"
    shutil.copytree(shapes_dir, copy)
    (shard,) = (copy / "shapes/1.0.0").glob("*-train.array_record*")
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)
    shard.write_bytes(content)
    own = [{}, {"data.dir": copy}]
    with Run(tmp_path / "run", shapes_dir, 2, own=own, train__steps=10**6, **GROUP) as run:
        codes, printed = run.end()
    assert codes == [2, 2], printed
    (line,) = [x for x in said(printed[1]).splitlines() if x.startswith("error:")]
    assert str(copy) in line
    assert "prepare the data set again" in line
    assert f"(process 1): {line}" in printed[0]


def test_a_workdir_that_the_hosts_do_not_share_is_an_error(shapes_dir, tmp_path):
    """The second host sees another disk at the same path."""
    (tmp_path / "sees").mkdir()
    with Run(
        tmp_path / "run", shapes_dir, 2, workdirs=[tmp_path / "run", tmp_path / "sees"]
    ) as run:
        codes, printed = run.end()
    assert codes == [2, 2], printed
    for text in printed:
        assert "is not shared: host" in text
        assert "(process 1) does not see what host" in text
    assert not (tmp_path / "sees/config.json").exists()


def test_what_differs_between_hosts_is_one_line_before_the_first_step(shapes_dir, tmp_path):
    own = [{}, {"optimizer.momentum": 0.8}]
    with Run(tmp_path, shapes_dir, 2, own=own) as run:
        codes, printed = run.end()
    assert codes == [2, 2], printed
    for text in printed:
        assert "config.optimizer.momentum is 0.9 on host" in text
        assert "(process 0) and 0.8 on host" in text
    assert not (tmp_path / "metrics.jsonl").exists()
