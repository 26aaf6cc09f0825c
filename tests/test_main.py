"""The program as a user meets it: its errors are one line and exit with 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SHAPES = "--config=experiments/shapes.py"


def program(*arguments, cwd=REPOSITORY):
    return subprocess.run(
        [sys.executable, "-m", "retina_jax.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},  # one device, as at home
    )


MISTAKES = {
    "misspelt field": (
        ["--config.loss.gama=1"],
        "--config.loss.gama is no field of the config; did you mean --config.loss.gamma?",
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
        "config.data.buckets=(800,) must be pairs (height, width)",
    ),
    "unknown flag": (["--stepz=4"], "stepz"),
    "unknown mode": (["--mode=fly"], "'fly' is no command; there are train, evaluate,"),
    "bare word": (["train"], "'train' is not a flag"),
    "no such data": (
        ["--config.data.dir=/nowhere", "--config.data.name=coco"],
        "-m retina_jax.main prepare coco --images IMAGES",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_that_names_the_fix(mistake, tmp_path):
    arguments, expected = MISTAKES[mistake]
    done = program(SHAPES, f"--workdir={tmp_path}/run", *arguments)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert not (tmp_path / "run").exists()


def test_missing_flags_and_files_are_named(tmp_path):
    assert "--config is missing" in program("--workdir=x").stderr
    assert "--workdir is missing" in program(SHAPES).stderr
    absent = program("--config=experiments/shape.py", "--workdir=x")
    assert absent.returncode == 2
    assert "error: --config=experiments/shape.py: no such file; there are" in absent.stderr
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:\n")
    done = program(f"--config={broken}", "--workdir=x")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_workdir_that_cannot_be_written_is_named(tmp_path, shapes_dir):
    (tmp_path / "file").write_text("")
    done = program(SHAPES, f"--workdir={tmp_path}/file/run", f"--config.data.dir={shapes_dir}")
    assert done.returncode == 2
    assert f"--workdir={tmp_path}/file/run" in done.stderr.splitlines()[-1]


def test_evaluating_an_empty_workdir_is_a_mistake(tmp_path, shapes_dir):
    done = program(
        SHAPES, f"--workdir={tmp_path}/run", f"--config.data.dir={shapes_dir}", "--mode=evaluate"
    )
    assert done.returncode == 2
    assert "holds no checkpoint" in done.stderr


def test_help_names_every_field_and_imports_nothing_heavy():
    code = (
        "import sys; from retina_jax.main import main; assert main(['x', 'train', '--help']) == 0; "
        "heavy = {'jax', 'numpy', 'cv2', 'flax', 'grain', 'orbax'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    assert "--config.loss.gamma=2.0" in done.stdout
    assert "(section" not in done.stdout.splitlines()[0]
