"""The command: tables from runs, shared and resumed; a run that diverges is a row."""

import contextlib
import csv
import io
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
from support import SMALLEST, on_one_device

from retina_jax.ablation import figures
from retina_jax.config import resolve
from retina_jax.config.flags import parse
from retina_jax.config.values import leaves
from retina_jax.errors import MISTAKE, NON_FINITE
from retina_jax.jobs import ablate as job
from retina_jax.main import main
from retina_jax.training.workdir import write_config

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPES = f"--config={REPOSITORY}/experiments/shapes.py"


def ablate(capsys, *flags):
    """Exit code and stderr of the command, run in this process."""
    code = main(["retina-jax", "ablate", *map(str, flags)])
    return code, capsys.readouterr().err.strip()


@pytest.fixture
def programs(monkeypatch):
    """Commands that studies run; each leaves what a run leaves, and ends with ``programs.code``.

    Every run scores an AP of ``programs.ap``, in steps of a quarter of a second.
    """
    made = types.SimpleNamespace(commands=[], code=0, stderr="", ap=0.25)

    def run(parsed, words, fields):
        made.commands.append(list(words))
        config = parsed.config.copy_and_resolve_references()
        config.update_from_flattened_dict(fields)
        if made.code:
            return subprocess.CompletedProcess(words, made.code, "", made.stderr)
        if words[0] == "benchmark":
            bucket = resolve(config).buckets[0]
            figures = {
                "timed": words[1], "input": bucket, "images_per_second": 50.0,
                "batch_size": config.train.batch_size, "program_memory_gib": 0.25,
            }  # fmt: skip
            return subprocess.CompletedProcess(words, 0, json.dumps(figures) + "\n", "")
        folder = Path(words[1].removeprefix("--workdir="))
        if len(words) > 2:  # as one program, of which the last seed diverges
            count = int(words[2].removeprefix("--seeds="))
            for seed in range(count):
                config.seed = seed
                leave(folder / f"seed{seed}", config)
            stopped = {"step": 3, "message": "stopped: step 3: loss nan"}
            (folder / f"seed{count - 1}/diverged.json").write_text(json.dumps(stopped))
            return subprocess.CompletedProcess(words, NON_FINITE, "", "")
        leave(folder, config)
        return subprocess.CompletedProcess(words, 0, "", "")

    def leave(folder, config):
        write_config(folder, config, {"class_names": ["a", "b"], "category_ids": [1, 2]})
        steps, batch = config.train.steps, config.train.batch_size
        scores = {"AP": made.ap, "AP50": 0.5, "AP75": 0.125}
        (folder / f"eval/{steps}").mkdir(parents=True)
        (folder / f"eval/{steps}/metrics.json").write_text(json.dumps(scores))
        lines = [{"step": s, "images_per_second": 4 * batch} for s in range(1, steps + 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))

    monkeypatch.setattr(job, "run_program", run)
    drawn = []
    monkeypatch.setattr(figures, "draw_cumulative_loss", lambda run, path: drawn.append(run))
    made.drawn = drawn
    return made


def test_mistakes_are_one_line(tmp_path, capsys):
    for flags, message in (
        (["--study=gama", f"--out={tmp_path}"], "--study=gama must be one of prior"),
        ([f"--out={tmp_path}"], "--study is missing; set --study=prior,focal"),
        (["--study=prior", "--out=/proc/none"], "--out=/proc/none: No such file or directory"),
        (
            ["--study=prior", f"--out={tmp_path}", "--only=("],
            "--only='(' is not a regular expression",
        ),
        (
            ["--study=prior", f"--out={tmp_path}", "--together", "--seeds=1"],
            "--seeds=1 leaves no seeds to train together; set --seeds=2",
        ),
    ):
        code, said = ablate(capsys, SHAPES, *flags)
        assert code == MISTAKE
        assert said.startswith(f"error: {message}")
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize("dashes", ["-", "--"])
@pytest.mark.parametrize("joint", ["=", " "])
def test_runs_get_the_config_flags_alone_however_written(
    shapes_dir, tmp_path, dashes, joint, capsys, monkeypatch
):
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
    started = []

    def run(command, env, **options):
        """The program in this process; ``command`` begins with Python and the module."""
        assert command[:3] == [sys.executable, "-m", "retina_jax.main"]
        assert env["PYTHONPATH"].split(":")[0] == str(REPOSITORY)
        started.append(command[3:])
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = main(["retina-jax", *command[3:]])
        return subprocess.CompletedProcess(command, code, "", said.getvalue())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    code, said = ablate(capsys, *flags)
    assert code == MISTAKE
    assert "error: CE, prior 0.01, seed 0 failed with exit code 2: error: " in said
    assert "config.train.batch_size=12 must be a multiple of" in said
    (folder,) = (tmp_path / "here/runs").glob("*")
    assert folder.name == "classification=cross_entropy,prior=0.01"

    ((command, workdir, *rest),) = started
    assert (command, workdir) == ("train", f"--workdir={folder / 'seed0'}")
    expected = parse(["--config=own.py"], "").config.copy_and_resolve_references()
    expected.update_from_flattened_dict({
        "data.dir": "data", "data.flip": False, "train.batch_size": 12,
        "model.head_channels": 16, "loss.classification": "cross_entropy", "model.prior": 0.01,
        "seed": 0, "eval.pictures": 0,
    })  # fmt: skip
    assert leaves(parse(rest, "").config) == leaves(expected)


def test_kept_runs_of_other_flags_are_told_before_any_run(tmp_path, programs, capsys):
    """Of the last row: the first one is not begun."""
    folder = tmp_path / "runs/classification=cross_entropy,prior=0.01/seed0"
    folder.mkdir(parents=True)
    (folder / "outcome.json").write_text(json.dumps({"scores": None, "stopped": "", "fields": {}}))
    code, said = ablate(capsys, SHAPES, "--study=prior", f"--out={tmp_path}")
    assert code == MISTAKE
    assert "outcome.json was made with other flags (" in said
    assert len(said.splitlines()) == 1
    assert programs.commands == []
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_study_is_run_resumed_and_tabulated(tmp_path, programs, capsys):
    flags = [SHAPES, "--study=focal,boxes", "--only=γ 2", "--seeds=2", f"--out={tmp_path}",
             "--config.train.steps=2", "--config.matching.kind=atss"]  # fmt: skip
    code, said = ablate(capsys, *flags)
    assert code == MISTAKE
    assert "--only='γ 2' matches no row of --study=boxes" in said
    flags[1] = "--study=focal"
    code, said = ablate(capsys, *flags)
    assert code == 0, said
    seeds = [tmp_path / f"runs/alpha=0.25,classification=focal,gamma=2.0/seed{n}" for n in (0, 1)]
    assert programs.commands == [["train", f"--workdir={folder}"] for folder in seeds]
    assert programs.drawn == [seeds[0]]
    assert json.loads((seeds[1] / "config.json").read_text())["matching"]["kind"] == "atss"
    row = ["FL, γ 2.0, α 0.25", "25.0 ± 0.0", "50.0 ± 0.0", "12.5 ± 0.0", "2", "250", "34.0"]
    header, cells = csv.reader((tmp_path / "focal.csv").read_text().splitlines())
    assert header == ["setting", "AP", "AP50", "AP75", "runs", "ms per step", "paper's AP"]
    assert cells == row
    assert f"| {' | '.join(row)} |" in (tmp_path / "tables.md").read_text()
    assert (tmp_path / "loss_against_pt.png").exists()

    outcome = seeds[1] / "outcome.json"
    diverged = {"scores": None, "stopped": "stopped: step 3: loss nan"}
    outcome.write_text(json.dumps({**json.loads(outcome.read_text()), **diverged}))
    assert ablate(capsys, *flags)[0] == 0
    assert "1, 1 diverged" in (tmp_path / "focal.csv").read_text().splitlines()[1]
    code, said = ablate(capsys, *flags, "--config.train.steps=3")
    assert code == MISTAKE
    assert "outcome.json was made with other flags (train.steps=2, now 3)" in said
    assert len(programs.commands) == 2, "runs that have ended are read"


def test_columns_and_the_figure_of_anchors_and_speed(tmp_path, programs, capsys):
    flags = [
        SHAPES, "--study=anchors,speed", "--seeds=1", f"--out={tmp_path}",
        "--only=1 scales × 1 |resnet18, 64 px", "--config.train.steps=2",
        "--config.anchors.ratios=(0.5,2.0)",
    ]  # fmt: skip
    code, said = ablate(capsys, *flags)
    assert code == 0, said
    header, row = csv.reader((tmp_path / "anchors.csv").read_text().splitlines())
    # 128 px: 16² + 8² + 4² + 2² + 1 places of one anchor
    assert dict(zip(header, row, strict=True))["anchors"] == "341"
    header, row = csv.reader((tmp_path / "speed.csv").read_text().splitlines())
    assert dict(zip(header, row, strict=True))["ms per image"] == "20.0"  # 50 images a second
    (kept,) = tmp_path.glob("runs/*/speed.json")
    measured = json.loads(kept.read_text())
    assert measured["input"] == [64, 64]
    assert measured["timed"] == "predict"
    assert (tmp_path / "speed_against_ap.png").exists()
    before = len(programs.commands)
    assert ablate(capsys, *flags)[0] == 0
    assert len(programs.commands) == before, "runs and speeds that are there are read"
    kept.write_text(json.dumps({"images_per_second": 100.0}))
    code, said = ablate(capsys, *flags)
    assert code == MISTAKE
    assert "speed.json does not store the flags it was made with; set another" in said
    kept.unlink()
    programs.code, programs.stderr = 1, "Traceback\nValueError: what stopped it"
    code, said = ablate(capsys, *flags)
    assert code == MISTAKE
    assert "cannot measure its speed: ValueError: what stopped it" in said


def test_the_seeds_of_a_row_as_one_program(tmp_path, programs, capsys):
    flags = [SHAPES, "--study=focal", "--only=γ 2", "--seeds=3", "--together", f"--out={tmp_path}"]
    code, said = ablate(capsys, *flags)
    assert code == 0, said
    folder = tmp_path / "runs/alpha=0.25,classification=focal,gamma=2.0"
    assert programs.commands == [["train", f"--workdir={folder}", "--seeds=3"]]
    assert "seed 2: stopped: step 3: loss nan" in said
    assert (
        '25.0 ± 0.0,50.0 ± 0.0,12.5 ± 0.0,"2, 1 diverged"' in (tmp_path / "focal.csv").read_text()
    )
    for seed in range(3):
        fields = json.loads((folder / f"seed{seed}/outcome.json").read_text())["fields"]
        assert (fields["seed"], fields["data.seed"]) == (seed, 0)
    assert ablate(capsys, *flags)[0] == 0
    assert len(programs.commands) == 1, "outcomes that are there are read"
    code, said = ablate(capsys, *(flag for flag in flags if flag != "--together"))
    assert code == MISTAKE
    assert "(data.seed=0, now -1)" in said, "other batches"


def test_the_modern_study_measures_what_each_row_costs(tmp_path, programs, capsys):
    flags = [SHAPES, "--study=modern", "--only=anchor", "--seeds=1", f"--out={tmp_path}"]
    code, said = ablate(capsys, *flags)
    assert code == 0, said
    header, *rows = csv.reader((tmp_path / "modern.csv").read_text().splitlines())
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    assert [(row["setting"], row["anchors"]) for row in rows] == [
        ("RetinaNet, nine anchors", "3069"), ("+ one anchor", "341"),
        ("ATSS and GIoU, but nine anchors", "3069"),
    ]  # fmt: skip
    for row in rows:
        assert row["ms per step"] == "160.0", "8 images, of 50 a second"
        assert row["memory, GiB"] == "0.25"
    measured = [command for command in programs.commands if command[0] == "benchmark"]
    assert measured == [["benchmark", "step", "--classes=2"]] * 3
    assert len(list(tmp_path.glob("runs/*/step.json"))) == 3
    assert (tmp_path / "ap_over_cost.png").stat().st_size > 0


def test_rows_that_the_config_rules_out_are_told_before_any_run(tmp_path, programs, capsys):
    code, said = ablate(
        capsys, SHAPES, "--study=losses", "--config.loss.gamma=0", f"--out={tmp_path}"
    )
    assert code == MISTAKE
    assert said.startswith("error: row 'FL*, γ 2, β 1': config.loss.gamma=0")
    assert programs.commands == []


def test_a_run_that_diverges_is_told_from_one_that_fails(tmp_path, programs, capsys):
    flags = [SHAPES, "--study=focal", "--only=γ 2", "--seeds=1"]
    programs.code, programs.stderr = NON_FINITE, "a line before\nstopped: step 3: loss nan"
    code, said = ablate(capsys, *flags, f"--out={tmp_path}/diverged")
    assert code == 0, said
    assert "0, 1 diverged" in (tmp_path / "diverged/tables.md").read_text()
    (outcome,) = (tmp_path / "diverged").glob("runs/*/seed0/outcome.json")
    assert json.loads(outcome.read_text())["stopped"] == "stopped: step 3: loss nan"
    assert programs.drawn == [], "there are no weights to draw from"
    programs.code, programs.stderr = (
        MISTAKE,
        "error: config.train.batch_size=6 must be a multiple of the 8 devices",
    )
    code, said = ablate(capsys, *flags, f"--out={tmp_path}/failed")
    assert code == MISTAKE
    assert "exit code 2: error: config.train.batch_size=6 must be a multiple of" in said
    assert not list((tmp_path / "failed").glob("runs/*/seed0/outcome.json"))


def test_a_study_runs_the_program_itself(shapes_dir, tmp_path, capsys, monkeypatch):
    """Each run in a process of its own."""
    for name, value in on_one_device().items():
        monkeypatch.setenv(name, value)
    code, said = ablate(
        capsys, SHAPES, "--study=focal", "--only=γ 2", "--seeds=1", f"--out={tmp_path}",
        f"--config.data.dir={shapes_dir}", *SMALLEST,
    )  # fmt: skip
    assert code == 0, said
    (run,) = tmp_path.glob("runs/*/seed0")
    scores = json.loads((run / "eval/1/metrics.json").read_text())
    outcome = json.loads((run / "outcome.json").read_text())
    assert outcome["scores"]["AP"] == scores["AP"]
    for name in ("tables.md", "focal.csv", "loss_against_pt.png", "cumulative_loss.png"):
        assert (tmp_path / name).stat().st_size > 0
