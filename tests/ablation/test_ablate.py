"""The program: tables from runs, shared and resumed; a run that diverges is a row."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def ablate(*arguments, cwd=REPOSITORY):
    return subprocess.run(
        [sys.executable, REPOSITORY / "scripts/ablate.py", *arguments],
        cwd=cwd, capture_output=True, text=True,
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


@pytest.mark.parametrize("dashes", ["-", "--"])
@pytest.mark.parametrize("joint", ["=", " "])
def test_runs_get_the_config_flags_alone_however_written(shapes_dir, tmp_path, dashes, joint):
    """From another folder, with paths that are relative to it; the run refuses its batch size."""
    (tmp_path / "own.py").write_text((REPOSITORY / "experiments/shapes.py").read_text())
    (tmp_path / "data").symlink_to(shapes_dir)
    values = {
        "config": "own.py", "study": "prior", "out": "here", "seeds": "1", "only": "0.01",
        "config.data.dir": "data", "config.train.batch_size": "12",
        "config.model.head_channels": "16",
    }  # fmt: skip
    flags = [f"{dashes}{name}{joint}{value}" for name, value in values.items()]
    flags = [*" ".join(flags).split(" "), f"{dashes}noconfig.data.flip"]
    done = ablate(*flags, cwd=tmp_path)
    assert done.returncode == 2
    assert "error: CE, prior 0.01, seed 0: exit code 2: error: " in done.stderr
    assert "config.train.batch_size=12 must divide by" in done.stderr
    (folder,) = (tmp_path / "here/runs").glob("*")
    assert folder.name == "classification=cross_entropy,prior=0.01"


def test_kept_runs_of_other_flags_are_told_before_any_run(shapes_dir, tmp_path):
    """Of the last row: the first one is not begun."""
    folder = tmp_path / "runs/classification=cross_entropy,prior=0.01/seed0"
    folder.mkdir(parents=True)
    (folder / "outcome.json").write_text(json.dumps({"scores": None, "stopped": "", "fields": {}}))
    done = ablate(
        "--config=experiments/shapes.py", "--study=prior", f"--out={tmp_path}",
        f"--config.data.dir={shapes_dir}", "--config.train.batch_size=12",  # runs would fail
    )  # fmt: skip
    assert done.returncode == 2
    assert "outcome.json was made with other flags (" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert len(list((tmp_path / "runs").iterdir())) == 1


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
    diverged = {"scores": None, "stopped": "stopped: step 3: loss nan"}
    outcomes[1].write_text(json.dumps({**json.loads(outcomes[1].read_text()), **diverged}))
    again = ablate(*flags)
    assert again.returncode == 0
    assert outcomes[0].stat().st_mtime == times[0]
    row = (tmp_path / "focal.csv").read_text().splitlines()[1]
    assert "1, 1 diverged" in row
    other = ablate(*flags, "--config.train.steps=3")
    assert other.returncode == 2
    assert "outcome.json was made with other flags (train.steps=2, now 3)" in other.stderr
    assert outcomes[0].stat().st_mtime == times[0]


@pytest.mark.slow
def test_columns_and_the_figure_of_anchors_and_speed(shapes_dir, tmp_path):
    flags = [
        "--config=experiments/shapes.py", "--study=anchors,speed", "--seeds=1",
        "--only=1 scales × 1 |resnet18, 64 px", f"--out={tmp_path}",
        f"--config.data.dir={shapes_dir}", "--config.train.steps=2", "--config.model.width=8",
        "--config.model.fpn_channels=16", "--config.model.head_channels=16",
        "--config.optimizer.warmup_steps=0", "--config.anchors.ratios=(0.5,2.0)",
    ]  # fmt: skip
    done = ablate(*flags)
    assert done.returncode == 0, done.stderr
    header, row = csv.reader((tmp_path / "anchors.csv").read_text().splitlines())
    # 128 px: 16² + 8² + 4² + 2² + 1 places of one anchor
    assert dict(zip(header, row, strict=True))["anchors"] == "341"
    header, row = csv.reader((tmp_path / "speed.csv").read_text().splitlines())
    milliseconds = float(dict(zip(header, row, strict=True))["ms an image"])
    (kept,) = tmp_path.glob("runs/*/speed.json")
    measured = json.loads(kept.read_text())
    assert measured["input"] == [64, 64]
    assert measured["timed"] == "predict"
    assert milliseconds == pytest.approx(1000 / measured["images_per_second"], abs=0.06)
    assert (tmp_path / "speed_against_ap.png").stat().st_size > 5_000
    time = kept.stat().st_mtime
    again = ablate(*flags)
    assert again.returncode == 0, again.stderr
    assert kept.stat().st_mtime == time
    kept.write_text(json.dumps({"images_per_second": 100.0}))
    old = ablate(*flags)
    assert old.returncode == 2
    assert "speed.json does not say with which flags it was made; give another" in old.stderr


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
