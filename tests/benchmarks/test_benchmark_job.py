"""benchmark as a command: one JSON object per line, for the kinds that compute."""

import json

import jax
import pytest


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of compiled programs that the command itself has to find."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("RETINA_JAX_CACHE", raising=False)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("small_model", "own_cache")
@pytest.mark.parametrize("kind", ["step", "predict"])
def test_a_kind_that_computes_prints_its_figures(program, kind):
    done = program(
        "benchmark", kind, "--config=experiments/shapes.py", "--runs=1", "--steps=1",
        "--classes=2", "--config.train.batch_size=2", "--config.eval.batch_size=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (figures,) = map(json.loads, done.stdout.splitlines())
    assert figures["timed"] == kind
    assert figures["input"] == [128, 128]
    assert len(figures["step_seconds"]) == 1
    assert figures["program_memory_gib"] > 0


@pytest.mark.usefixtures("small_model", "own_cache")
def test_seeds_are_timed_in_turn_and_together(program):
    done = program(
        "benchmark", "seeds", "--config=experiments/shapes.py", "--seeds=2", "--runs=1",
        "--steps=1", "--classes=2", "--config.train.batch_size=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (figures,) = map(json.loads, done.stdout.splitlines())
    assert figures["seeds"] == 2
    ratio = figures["images_per_second_together"] / figures["images_per_second_in_turn"]
    assert ratio == pytest.approx(figures["gain"], rel=0.02, abs=0.001)
    one, both = (figures[f"program_memory_gib_{name}"] for name in ("of_one", "together"))
    assert 0 < one < both
