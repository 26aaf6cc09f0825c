"""The program: tables from runs, shared and resumed; a run that diverges is a row."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def ablate(*arguments):
    return subprocess.run(
        [sys.executable, REPOSITORY / "scripts/ablate.py", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip


def test_mistakes_are_one_line(tmp_path):
    for flags, message in (
        (["--study=gama", f"--out={tmp_path}"], "--study=gama must be one of prior"),
        ([f"--out={tmp_path}"], "--study is missing; set --study=prior,focal"),
        (["--study=prior", "--out=/proc/none"], "--out=/proc/none: No such file or directory"),
        (["--study=prior", f"--out={tmp_path}", "--only=("], "--only='(' is no regular expression"),
    ):
        done = ablate("--config=experiments/shapes.py", *flags)
        assert done.returncode == 2
        assert done.stderr.strip().startswith(f"error: {message}")
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_study_is_run_resumed_and_tabulated(shapes_dir, tmp_path):
    flags = [
        "--config=experiments/shapes.py", "--study=focal,boxes", "--only=γ 2", "--seeds=2",
        f"--out={tmp_path}", f"--config.data.dir={shapes_dir}", "--config.train.steps=2",
        "--config.model.width=8", "--config.model.fpn_channels=16",
        "--config.model.head_channels=16", "--config.optimizer.warmup_steps=0",
    ]  # fmt: skip
    refused = ablate(*flags)
    assert refused.returncode == 2
    assert "--only='γ 2' leaves no row of --study=boxes" in refused.stderr
    flags[1] = "--study=focal"
    done = ablate(*flags)
    assert done.returncode == 0, done.stderr
    for name in ("tables.md", "focal.csv", "loss_against_pt.png", "cumulative_loss.png"):
        assert (tmp_path / name).stat().st_size > 0
    outcomes = sorted(tmp_path.glob("runs/*/seed*/outcome.json"))
    assert len(outcomes) == 2
    times = [path.stat().st_mtime for path in outcomes]
    outcomes[1].write_text(json.dumps({"scores": None, "stopped": "stopped: step 3: loss nan"}))
    again = ablate(*flags)
    assert again.returncode == 0
    assert outcomes[0].stat().st_mtime == times[0]
    row = (tmp_path / "focal.csv").read_text().splitlines()[1]
    assert "1, 1 diverged" in row


@pytest.mark.slow
def test_a_run_that_diverges_is_told_from_one_that_fails(shapes_dir, tmp_path):
    flags = [
        "--config=experiments/shapes.py", "--study=focal", "--only=γ 2", "--seeds=1",
        f"--out={tmp_path}", f"--config.data.dir={shapes_dir}", "--config.train.steps=4",
        "--config.train.log_every=1", "--config.model.width=8", "--config.model.fpn_channels=16",
        "--config.model.head_channels=16", "--config.optimizer.warmup_steps=0",
        "--config.optimizer.clip_norm=0", "--config.optimizer.learning_rate=1e30",
    ]  # fmt: skip
    done = ablate(*flags)
    assert done.returncode == 0, done.stderr
    assert "0, 1 diverged" in (tmp_path / "tables.md").read_text()
    failed = ablate(*flags, "--config.train.batch_size=6", f"--out={tmp_path}/other")
    assert failed.returncode == 2
    assert "exit code 2: error: config.train.batch_size=6 must divide by" in failed.stderr
