"""Stores compiled programs on disk, so that a restart does not compile them again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import tempfile
from pathlib import Path

import jax

from retina_jax.files import cache_folder, is_address, open_path


def keep_compiled_programs(workdir: str = "") -> None:
    """Stores compiled programs on disk, for restarts and other processes.

    In $JAX_COMPILATION_CACHE_DIR if that is set, else in $RETINA_JAX_CACHE, else next to a
    ``workdir`` in an object store, which outlives the machine, else in the user's cache folder;
    nowhere if that is not writable.

    JAX's keys cover its version, the program, the devices and the compiler's options, and it writes
    files atomically, so programs of any version can share the folder. The keys do not cover the
    host's instruction set, so each kind of CPU has its own folder, in case hosts share a home.
    """
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


def _kind_of_cpu() -> str:
    """A name for the instruction set of this host's CPU."""
    features = platform.machine()
    with contextlib.suppress(OSError):  # Linux only
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features += next((x for x in lines if x.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
