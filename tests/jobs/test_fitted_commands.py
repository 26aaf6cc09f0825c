"""Commands other than train see the config as fitted to the data, or say that they do not."""

import subprocess
import types

import pytest

from retina_jax.config.values import leaves
from retina_jax.prepare import shapes


@pytest.fixture(scope="module")
def directory(made_once):
    return made_once("fitting", lambda out: shapes.build(out, {"train": 12, "validation": 4}))


@pytest.fixture
def flags(directory):
    return ("--config=experiments/finetune.py:focal", f"--config.data.dir={directory}")


def test_ablate_fits_once_for_all_rows(program, flags, tmp_path, monkeypatch):
    from retina_jax.ablation import runner

    seen = {}

    def run(command, **options):
        seen["command"] = command
        return types.SimpleNamespace(returncode=0, stdout="", stderr="")

    def ablate(config, study, out, seeds, rows_program, only, report, together):
        seen["config"] = config
        rows_program(["train", "--workdir=x"], {"anchors.ratios": (1.0,)})
        return "tables"

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(runner, "ablate", ablate)
    done = program("ablate", *flags, "--study=prior", f"--out={tmp_path}", "--config.seed=3")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("fitted to 12 training images") == 1
    values = leaves(seen["config"])
    assert values["data.max_boxes"] < 100
    for name in ("data.max_boxes", "data.buckets", "anchors.scale", "train.steps", "seed"):
        assert f"--config.{name}={values[name]}" in seen["command"]
    assert "--config.anchors.ratios=(1.0,)" in seen["command"]  # the row's


def test_compile_says_that_it_does_not_fit(program, flags, monkeypatch):
    from retina_jax.compiling import study, table

    monkeypatch.setattr(study, "study", lambda *arguments: arguments)
    monkeypatch.setattr(study, "what_does_not_fit", lambda *arguments: "")
    monkeypatch.setattr(table, "lines", lambda result: ["table"])
    monkeypatch.setattr("os.environ", {})
    done = program("compile", *flags, "--topology=v5e:2x2x1")
    assert done.returncode == 0, done.stderr
    assert "compile opens no data set and uses the values before the fit" in done.stderr
