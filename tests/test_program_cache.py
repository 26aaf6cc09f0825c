"""Where compiled programs are kept, and where not."""

from pathlib import Path

import jax
import pytest

from retina_jax.program_cache import keep_compiled_programs


@pytest.fixture
def no_cache(monkeypatch):
    """JAX without a folder for compiled programs; restores the tests' own."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv("RETINA_JAX_CACHE", raising=False)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_are_kept_where_the_user_says(no_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("RETINA_JAX_CACHE", str(tmp_path))
    keep_compiled_programs()
    folder = Path(jax.config.jax_compilation_cache_dir)
    assert folder.is_dir()
    assert folder.parent == tmp_path / "compiled"


def test_compiled_programs_are_kept_in_the_users_cache_folder(no_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled_programs()
    assert Path(jax.config.jax_compilation_cache_dir).is_relative_to(tmp_path / "retina_jax")


@pytest.mark.parametrize(
    ("workdir", "beside"),
    [("gs://bucket/runs/a", "gs://bucket/runs"), ("gs://bucket", "gs://bucket")],
)
def test_compiled_programs_are_kept_beside_a_workdir_in_a_bucket(
    no_cache, workdir, beside, tmp_path, monkeypatch
):
    keep_compiled_programs(workdir)
    assert jax.config.jax_compilation_cache_dir.startswith(f"{beside}/compiled/")
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("RETINA_JAX_CACHE", str(tmp_path))
    keep_compiled_programs(workdir)
    assert Path(jax.config.jax_compilation_cache_dir).is_relative_to(tmp_path)


def test_without_a_writable_folder_programs_are_compiled_each_time(no_cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RETINA_JAX_CACHE", str(tmp_path / "file"))
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None


def test_jaxs_own_folder_goes_first(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("RETINA_JAX_CACHE", str(tmp_path))
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == before is not None
