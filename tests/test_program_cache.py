"""Where compiled programs are kept, and where not."""

import errno
from pathlib import Path

import jax
import pytest
from jax._src import compilation_cache, lru_cache

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


@pytest.fixture
def own_cache(no_cache, tmp_path, monkeypatch):
    """The folder of an empty cache that JAX uses."""
    monkeypatch.setenv("RETINA_JAX_CACHE", str(tmp_path))
    keep_compiled_programs()
    compilation_cache.reset_cache()
    yield Path(jax.config.jax_compilation_cache_dir)
    compilation_cache.reset_cache()


def compile_one():
    """Compiles one program anew, and keeps it even if that took no time."""
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        return float(jax.jit(lambda x: x * 3 + 1)(2.0))
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "no space left"), KeyboardInterrupt()])
def test_a_program_that_is_not_written_whole_leaves_no_file(own_cache, monkeypatch, fault):
    """A program that is killed leaves at most a temporary file; a full disk not even that."""
    write = Path.write_bytes

    def half(path, value):
        write(path, value[: len(value) // 2])
        raise fault

    monkeypatch.setattr(Path, "write_bytes", half)
    if isinstance(fault, OSError):
        with pytest.warns(UserWarning, match="Error writing persistent compilation cache"):
            assert compile_one() == 7
    else:
        with pytest.raises(KeyboardInterrupt):
            compile_one()
    assert not list(own_cache.iterdir())


def test_a_program_is_one_file_that_jax_reads_again(own_cache):
    assert compile_one() == 7
    (file,) = own_cache.iterdir()
    written = file.stat().st_mtime_ns
    jax.clear_caches()
    assert compile_one() == 7
    assert [file] == list(own_cache.iterdir())
    assert file.stat().st_mtime_ns == written


def test_a_cache_of_limited_size_is_left_to_jax(tmp_path):
    pytest.importorskip("filelock")  # JAX needs it for this alone
    cache = lru_cache.LRUCache(str(tmp_path), max_size=100)
    keep_compiled_programs()
    cache.put("a", b"x" * 60)
    cache.put("b", b"y" * 60)
    assert cache.get("a") is None
    assert cache.get("b") == b"y" * 60
