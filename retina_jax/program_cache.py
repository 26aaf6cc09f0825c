"""Stores compiled programs on disk, so that a restart does not compile them again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import tempfile
from pathlib import Path

import jax
from jax._src import lru_cache  # no public way to write a compiled program otherwise

from retina_jax.files import atomic_write, cache_folder, is_address, open_path


def keep_compiled_programs(workdir: str = "") -> None:
    """Stores compiled programs on disk, for restarts and other processes.

    In $JAX_COMPILATION_CACHE_DIR if that is set, else in $RETINA_JAX_CACHE, else next to a
    ``workdir`` in an object store, which outlives the machine, else in the user's cache folder;
    nowhere if that is not writable.

    JAX's keys cover its version, the program, the devices and the compiler's options, and files are
    written atomically, so programs of any version can share the folder. The keys do not cover the
    host's instruction set, so each kind of CPU has its own folder, in case hosts share a home.
    """
    _write_atomically()
    if jax.config.jax_compilation_cache_dir is not None:
        return
    if is_address(workdir) and not os.environ.get("RETINA_JAX_CACHE"):
        run = open_path(workdir, "--workdir")
        beside = run.parent if run.parent.name != "gs" else run  # a bucket has nothing beside it
        folder = beside / "compiled" / _kind_of_cpu()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        return
    folder = cache_folder() / "compiled" / _kind_of_cpu()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


_jaxs_put = lru_cache.LRUCache.put


def _write_atomically() -> None:
    """Makes JAX's cache on disk write its files atomically.

    JAX (0.10 to 0.12) writes them in place and never replaces them. A program that is killed, or a
    full disk, would leave part of a file; every later start would then warn and compile again.
    """
    lru_cache.LRUCache.put = _put


def _put(cache: lru_cache.LRUCache, key: str, value: bytes) -> None:
    """In place of `LRUCache.put`, which then finds the file written."""
    path = cache.path / f"{key}-cache"
    if not (cache.eviction_enabled or is_address(str(path)) or path.exists()):
        with atomic_write(str(path)) as temporary:
            temporary.write_bytes(value)
    _jaxs_put(cache, key, value)


def _kind_of_cpu() -> str:
    """A name for the instruction set of this host's CPU."""
    features = platform.machine()
    with contextlib.suppress(OSError):  # Linux only
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features += next((x for x in lines if x.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
