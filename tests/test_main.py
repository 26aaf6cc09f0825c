"""The command line as a user meets it: which command runs, its help, its one-line errors."""

import contextlib
import importlib
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from retina_jax import main as command_line
from retina_jax.errors import MISTAKE, NonFiniteLossError, RunError, UserError
from retina_jax.main import BROKEN_PIPE, COMMANDS, main, read_command

REPOSITORY = Path(__file__).parent.parent
SHAPES = f"--config={REPOSITORY}/experiments/shapes.py"
HEAVY = (
    "jax",
    "numpy",
    "cv2",
    "flax",
    "grain",
    "orbax",
    "matplotlib",
    "PIL",
    "rich",
    "torch",
    "fastapi",
)


@pytest.fixture
def run(capsys):
    """Runs a command in this process: its exit code, and its lines on stderr."""

    def run(*arguments):
        code = main(["retina-jax", *map(str, arguments)])
        return code, capsys.readouterr().err.splitlines()

    return run


@pytest.fixture
def job(monkeypatch):
    """Stands in for every command: its arguments, and what it does."""
    made = types.SimpleNamespace(calls=[], action=lambda: 0)

    def import_module(name):
        def main(arguments):
            made.calls.append((name, arguments))
            return made.action()

        return types.SimpleNamespace(main=main)

    monkeypatch.setattr(command_line, "importlib", types.SimpleNamespace(
        import_module=import_module))  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("argv", "command", "arguments"),
    [
        (["train", "--workdir=w"], "train", ["--workdir=w"]),
        (["import-weights", "--out=w"], "import_weights", ["--out=w"]),
        (["import_weights", "--out=w"], "import_weights", ["--out=w"]),
        (["--workdir=w"], "train", ["--workdir=w"]),
        (["--workdir=w", "--mode=evaluate"], "evaluate", ["--workdir=w"]),
        (["--mode", "evaluate", "--workdir=w"], "evaluate", ["--workdir=w"]),
        (["-mode=export-weights", "--to=x"], "export_weights", ["--to=x"]),
        (["--config=a", "--help"], "train", ["--config=a", "--help"]),
        (["draw", "--mode=x"], "draw", ["--mode=x"]),
        (["--help"], None, ["--help"]),
        (["-h"], None, ["-h"]),
        ([], None, []),
    ],
)
def test_the_command_is_the_first_word_or_the_mode(argv, command, arguments):
    assert read_command(argv) == (command, arguments)


@pytest.mark.parametrize("argv", [["fly"], ["--mode=fly"], ["--mode", "fly"], ["--mode"]])
def test_an_unknown_command_names_those_there_are(argv):
    with pytest.raises(
        UserError, match=r"unknown command .*; available: train, .*, import-weights"
    ):
        read_command(argv)


def test_a_command_runs_its_job_with_the_rest_and_gives_its_exit_code(job, run):
    job.action = lambda: 143
    assert run("export-weights", "--to=x") == (143, [])
    assert job.calls == [("retina_jax.jobs.export_weights", ["--to=x"])]


def test_every_command_has_a_job():
    for name in COMMANDS:
        assert callable(importlib.import_module(f"retina_jax.jobs.{name}").main)
    jobs = {p.stem for p in (REPOSITORY / "retina_jax/jobs").glob("*.py")} - {"__init__"}
    assert jobs == set(COMMANDS)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("what is wrong"), 2, "error: what is wrong"),
        (RunError("a worker died"), 1, "stopped: a worker died"),
        (NonFiniteLossError("step 3"), 4, "stopped: step 3"),
        (KeyboardInterrupt(), 130, "stopped; run the same command again to continue"),
    ],
    ids=["mistake", "fault", "non-finite", "interrupt"],
)
def test_an_error_of_a_job_is_one_line_and_its_exit_code(job, run, error, code, line):
    def fail():
        raise error

    job.action = fail
    assert run("train") == (code, [line])


def test_any_other_error_keeps_its_traceback(job, run):
    def fail():
        raise ValueError("a bug")

    job.action = fail
    with pytest.raises(ValueError, match="a bug"):
        run("train")


def test_help_lists_every_command(capsys):
    assert main(["retina-jax", "--help"]) == 0
    shown = capsys.readouterr().out
    for name, meaning in COMMANDS.items():
        assert f"  {name.replace('_', '-')} " in shown
        assert meaning in shown
    assert "usage: retina-jax COMMAND" in shown


WITHOUT_CONFIG = (
    "prepare", "predict", "serve", "draw", "compare", "status", "export_weights", "launch",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_names_its_flags(command, capsys):
    spelt = command.replace("_", "-")
    with contextlib.suppress(SystemExit):  # argparse's own
        assert main(["retina-jax", spelt, "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert f"retina-jax {spelt} " in shown.out
    takes_config = "fields, with their defaults" in shown.out
    assert takes_config == (command not in WITHOUT_CONFIG)
    own = {
        "train": "--workdir", "evaluate": "--workdir", "draw": "--score", "ablate": "--seeds=3",
        "import_weights": "--classes", "export_weights": "--to", "benchmark": "--runs=5",
        "doctor": "--out=doctor", "prepare": "coco", "compile": "--topology",
        "launch": "--dry-run", "compare": "--samples", "status": "RUN [RUN ...]",
        "replay": "--repeat=1000", "predict": "--tile", "export": "--batch_size=0",
        "serve": "--max-megapixels",
    }  # fmt: skip
    assert own[command] in shown.out


@pytest.mark.parametrize("arguments", [["--help"], ["draw", "--help"], ["prepare", "--help"],
                                       ["predict", "--help"], ["serve", "--help"]])  # fmt: skip
def test_help_imports_nothing_heavy(arguments):
    check_imports(arguments)


def check_imports(arguments):
    """The help of a program of its own, which imports nothing heavy."""
    code = (
        "import sys; from retina_jax.main import main\n"
        f"try: code = main(['retina-jax', *{arguments}])\n"
        "except SystemExit as end: code = end.code\n"
        "assert code == 0, code\n"
        f"heavy = {set(HEAVY)} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    return done


def test_help_names_every_field_and_imports_nothing_heavy():
    done = check_imports(["train", "--help"])
    assert "--config.loss.gamma=2.0" in done.stdout
    assert "(section" not in done.stdout.splitlines()[0]


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("", BROKEN_PIPE)])
def test_a_reader_that_has_seen_enough_gets_no_traceback(argument, code):
    """The pipe is closed before a word is written, as by ``| true``."""
    reader, writer = os.pipe()
    os.close(reader)
    script = (
        "import sys, types; from retina_jax import main as command_line\n"
        "job = types.SimpleNamespace(main=lambda arguments: print('x' * 2**17) or 0)\n"
        "if not sys.argv[1]:\n"
        "    command_line.importlib = types.SimpleNamespace(import_module=lambda name: job)\n"
        "sys.exit(command_line.main(['retina-jax', 'train', *filter(None, sys.argv[1:])]))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, argument],
            stdout=writer, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode == code


MISTAKES = {
    "misspelt field": (
        ["--config.loss.gama=1"],
        "--config.loss.gama is not a config field; did you mean --config.loss.gamma?",
    ),
    "misplaced field": (["--config.gamma=1"], "did you mean --config.loss.gamma?"),
    "word for a number": (
        ["--config.train.steps=many"],
        "--config.train.steps=many is not of type int",
    ),
    "fraction for a count": (["--config.train.steps=1.5"], "1.5 is not of type int"),
    "impossible value": (
        ["--config.train.batch_size=0"],
        "config.train.batch_size=0 must be above",
    ),
    "nan": (["--config.optimizer.learning_rate=nan"], "learning_rate=nan is not a finite number"),
    "tuple that is none": (
        ["--config.data.buckets=800"],
        "config.data.buckets=(800,) must be (height, width) pairs",
    ),
    "no steps to profile": (["--profile=9:3"], "--profile=9:3 selects no steps; set --profile=10"),
    "steps to profile that do not come": (
        ["--profile=9:30", "--config.train.steps=20"],
        "--profile=9:30 exceeds config.train.steps=20; record earlier steps",
    ),
    "unknown flag": (["--stepz=4"], "stepz"),
    "unknown mode": (["--mode=fly"], "unknown command 'fly'; available: train, evaluate,"),
    "bare word": (["train"], "unexpected argument 'train'"),
    "no such data": (
        ["--config.data.dir=/nowhere", "--config.data.name=coco"],
        "prepare coco --images IMAGES",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_that_names_the_fix(mistake, tmp_path, run):
    arguments, expected = MISTAKES[mistake]
    code, lines = run(SHAPES, f"--workdir={tmp_path}/run", *arguments)
    assert code == MISTAKE
    (line,) = lines
    assert line.startswith("error: ")
    assert expected in line
    assert not (tmp_path / "run").exists()


def test_the_program_itself_exits_with_2_after_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "retina_jax.main", SHAPES, f"--workdir={tmp_path}/run",
         "--config.loss.gama=1"],
        capture_output=True, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == MISTAKE
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --config.loss.gama is not a config field")


def test_missing_flags_and_files_are_named(tmp_path, run):
    assert "--config is missing" in run("--workdir=x")[1][0]
    assert "--workdir is missing" in run(SHAPES)[1][0]
    code, (line,) = run("--config=experiments/shape.py", "--workdir=x")
    assert code == MISTAKE
    assert "error: --config=experiments/shape.py: no such file; available: " in line
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:\n")
    code, lines = run(f"--config={broken}", "--workdir=x")
    assert code == MISTAKE
    assert len(lines) == 1


def test_a_workdir_that_cannot_be_written_is_named(tmp_path, shapes_dir, run):
    (tmp_path / "file").write_text("")
    code, lines = run(SHAPES, f"--workdir={tmp_path}/file/run", f"--config.data.dir={shapes_dir}")
    assert code == MISTAKE
    assert f"--workdir={tmp_path}/file/run" in lines[-1]


def test_evaluating_an_empty_workdir_is_a_mistake(tmp_path, shapes_dir, run):
    code, lines = run(
        SHAPES, f"--workdir={tmp_path}/run", f"--config.data.dir={shapes_dir}", "--mode=evaluate"
    )
    assert code == MISTAKE
    assert "has no checkpoint" in lines[-1]


@pytest.mark.parametrize(
    "script", sorted((REPOSITORY / "scripts").glob("*.py")), ids=lambda p: p.stem
)
def test_a_script_is_its_command(script, tmp_path):
    name = script.stem.replace("_", "-")
    name = {"visualize": "draw"}.get(name, name)
    done = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert f"retina-jax {name} " in done.stdout
