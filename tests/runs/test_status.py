"""Where a run stands, from its files alone."""

import json
import os
import subprocess
import sys
import time

import pytest

from retina_jax.errors import UserError
from retina_jax.jobs import status as job
from retina_jax.runs.status import duration, status_of
from retina_jax.training import error_log, lease_file


@pytest.fixture
def run(tmp_path):
    """A run of 1,000 steps of 8 images that has logged step 240."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"train": {"steps": 1000, "batch_size": 8}}')
    lines = [{"step": s, "loss": 2 - s / 1000, "images_per_second": 16.0} for s in (120, 240)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (100, 200):
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    (folder / "checkpoints" / "300.orbax-checkpoint-tmp").mkdir()
    return folder


def holds(run, age=0.0, **holder):
    path = run / lease_file.FILE
    path.write_text(json.dumps({"host": "elsewhere", "pid": 17} | holder))
    os.utime(path, (time.time() - age,) * 2)


def evaluated(run, name, **metrics):
    folder = run / "eval" / str(name)
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_a_run_that_runs(run):
    holds(run)
    status = status_of(run)
    assert status.running
    assert status.state == "running on elsewhere, process 17"
    assert (status.step, status.steps, status.checkpoint) == (240, 1000, 200)
    assert status.loss == pytest.approx(1.76)
    assert status.seconds_left == 760 * 8 / 16
    assert (status.last, status.best, status.error) == (None, None, "")


def test_a_line_that_is_being_written_is_left_out(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 360, "lo')
    assert status_of(run).step == 240


def test_only_the_end_of_a_long_log_is_read(run):
    lines = (json.dumps({"step": s, "loss": 1.0}) + "\n" for s in range(1, 20_001))
    (run / "metrics.jsonl").write_text("".join(lines))
    assert status_of(run).step == 20_000


@pytest.mark.parametrize(
    ("age", "holder", "state"),
    [
        (300, {}, "no heartbeat for 5 min (elsewhere, process 17)"),
        (1, {"machine": "here", "started": "1", "pid": 2**22 + 1},
         "killed (elsewhere, process 4194305)"),
    ],
)  # fmt: skip
def test_a_run_that_ended_without_a_word(run, age, holder, state, monkeypatch):
    monkeypatch.setattr(lease_file, "_machine", lambda: "here")
    holds(run, age, **holder)
    status = status_of(run)
    assert status.state == state
    assert not status.running
    assert status.seconds_left is None


def test_a_run_that_was_stopped_or_has_not_begun(run):
    assert status_of(run).state == "stopped"
    (run / "metrics.jsonl").unlink()
    assert status_of(run).step == 200  # of the checkpoint
    import shutil

    shutil.rmtree(run / "checkpoints")
    status = status_of(run)
    assert (status.state, status.step) == ("not started", None)


def test_evaluations_are_those_of_the_run_itself(run):
    evaluated(run, 100, AP=0.31)
    evaluated(run, 200, AP=0.3)
    evaluated(run, "200-other", AP=0.9)
    status = status_of(run)
    assert status.last == (200, 0.3)
    assert status.best == (100, 0.31)


def test_a_run_that_ended_early_until_it_may_go_on(run):
    """Decided by the evaluations that its checkpoints know; 200 is the newest."""
    config = {"train": {"steps": 1000, "patience": 2}, "eval": {"every": 50}}
    (run / "config.json").write_text(json.dumps(config))
    for step, ap in ((50, 0.3), (100, 0.3), (120, 0.1), (200, 0.2), (250, 0.1)):
        evaluated(run, step, AP=ap)
    assert status_of(run).state == "stopped early, no better AP since step 50"
    holds(run)
    assert status_of(run).state == "running on elsewhere, process 17"
    (run / lease_file.FILE).unlink()
    for patience in (0, 3):
        config["train"]["patience"] = patience
        (run / "config.json").write_text(json.dumps(config))
        assert status_of(run).state == "stopped"


def test_a_finished_run(finished_run):
    status = status_of(finished_run)
    assert status.state == "finished"
    assert status.step == status.steps == status.checkpoint == 4
    assert status.last[0] == 4


def test_the_last_error_is_told(run, capsys):
    for text in ("first", "a second\none"):
        error_log.record_error(run, text)
    assert status_of(run).error.endswith(" s ago: a second one")
    evaluated(run, 100, AP=None)
    assert job.main([str(run)]) == 0
    printed = capsys.readouterr().out
    assert "step 240 of 1,000 (24%), loss 1.76, 16.0 images/s\n" in printed
    assert "AP – (step 100)" in printed or "AP –; best –" in printed
    assert "newest checkpoint: step 200" in printed
    assert "ago: a second one" in printed


def test_an_error_that_leaves_the_run_is_recorded(run):
    with pytest.raises(ValueError, match="odd"), error_log.errors_recorded(run, True):
        raise ValueError("odd")
    with pytest.raises(ValueError, match="other"), error_log.errors_recorded(run, False):
        raise ValueError("other")
    (line,) = (run / error_log.FILE).read_text().splitlines()
    assert json.loads(line)["error"] == "odd"
    error_log.record_error(run / "gone", "a disk that is full")  # raises nothing


def test_a_folder_that_is_no_run_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        status_of(tmp_path)


def test_nothing_of_jax_is_imported(run):
    script = (
        "import sys; from retina_jax.main import main\n"
        f"assert main(['retina-jax', 'status', {str(run)!r}]) == 0\n"
        "heavy = {'jax', 'numpy', 'flax', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h"), (259_200, "3.0 days")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
