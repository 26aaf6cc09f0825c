"""Atomic file writes: a file is written completely or not at all, even if the program is killed.

Paths are those of `pathlib`, or for ``gs://`` addresses those of `etils.epath`, which have the same
methods. The functions here cover what the two do differently.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retina_jax import object_store
from retina_jax.errors import UserError
from retina_jax.object_store import StoredObject, download, is_address, list_objects, os_errors

__all__ = [
    "Mirror", "StoredObject", "atomic_write", "cache_folder", "clock", "create", "download",
    "is_address", "list_objects", "make_folder", "mirror", "modified", "move_folder", "on_disk",
    "open_path", "os_errors", "remove_leftovers", "write_json", "write_text",
]  # fmt: skip

_MARK = ".unfinished-"
"""Part of each temporary file's name: ``.NAME.unfinished-HOST-PID-RANDOM`` next to its target."""
_ABANDONED_AFTER = 24 * 3600.0  # seconds; another host on a shared disk may still be writing


def open_path(path: str | os.PathLike, flag: str) -> Path:
    """The path on disk or in an object store that a user gave as ``flag``; ``~`` is expanded.

    Raises `UserError` for other addresses, and if the package that opens addresses is missing.
    """
    text = os.fspath(path)
    if "://" not in text:
        return Path(text).expanduser()
    if not re.match(r"gs://[^/]", text):
        raise UserError(
            f"{flag}={text} is an address that this program cannot open; use gs://BUCKET/FOLDER "
            "or a folder"
        )
    try:
        return object_store.path_at(text)
    except ImportError as error:
        raise UserError(
            f"{flag}={text} needs gcsfs ({error}); install it with: pip install 'retina_jax[gcs]'"
        ) from None


def cache_folder() -> Path:
    """Where downloads and compiled programs are kept: $RETINA_JAX_CACHE or the user's cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "retina_jax"
    return Path(os.environ.get("RETINA_JAX_CACHE") or home).expanduser()


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path next to ``path``; on exit, the file written there becomes ``path``.

    The temporary path is always on disk; a file for an object store is then uploaded.

    The temporary name is unique and keeps the suffix of ``path``. Parent folders are created. On
    success the file is flushed to disk and renamed to ``path``, and the rename is flushed. On an
    exception the file is removed and ``path`` is unchanged. Temporary files for the same ``path``
    that killed programs left behind are removed. Raises `OSError` if the file system does.
    """
    if is_address(path):
        with tempfile.TemporaryDirectory(prefix="retina_jax-") as folder:
            temporary = Path(folder) / path.name
            yield temporary
            object_store.upload(temporary, path)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    owner = f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}{_MARK}{owner}{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """`atomic_write` of UTF-8 text."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """`atomic_write` of JSON: objects indented, lists (which may be long) on one line."""
    write_text(path, json.dumps(value, indent=None if isinstance(value, list) else 2) + "\n")


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents, unless they exist; object stores need none."""
    if not is_address(folder):
        folder.mkdir(parents=True, exist_ok=True)


def create(path: Path, text: str) -> bool:
    """Writes a new file; False if it exists. Of several programs at the same time, one succeeds."""
    try:
        if is_address(path):
            object_store.create(path, text.encode())
        else:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with os.fdopen(handle, "w") as file:
                file.write(text)
    except FileExistsError:
        return False
    return True


def modified(path: Path) -> float | None:
    """When a file was last written, by the clock of its disk or store; None if there is none."""
    try:
        return object_store.modified(path) if is_address(path) else path.stat().st_mtime
    except FileNotFoundError:
        return None


def clock(folder: Path) -> float:
    """The time by the clock of the disk or store of ``folder``, which is not this host's.

    Writes and removes a file there; raises `OSError` if that cannot be done.
    """
    if is_address(folder):
        return object_store.probe(folder)
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def move_folder(source: Path, target: Path) -> None:
    """Renames a folder; creates the parent of ``target``. In an object store, object by object."""
    if is_address(source):
        object_store.move(source, target)
    else:
        make_folder(target.parent)
        source.rename(target)


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """Yields ``path``, or a temporary copy of an object. Raises `OSError`."""
    if not is_address(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="retina_jax-") as folder:
        copy = Path(folder) / path.name
        object_store.download(path, copy)
        yield copy


def mirror(folder: Path) -> Mirror:
    """A local folder for growing files: ``folder`` itself, unless it is in an object store."""
    return object_store.Mirror(folder) if is_address(folder) else Mirror(folder)


class Mirror:
    """A folder on disk, which needs no uploads; `object_store.Mirror` is its counterpart."""

    def __init__(self, folder: Path):
        self.local = folder

    def upload(self) -> None:
        """Copies what has changed."""

    def close(self) -> None:
        """Copies the rest."""


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Removes temporary files that killed programs left in ``folder`` (for the target ``name``).

    Files of programs still running on this host are kept, as are recent files of other hosts.
    """
    for leftover in folder.glob(f".{_escaped(name) or '*'}{_MARK}*"):
        host, _, rest = leftover.name.rpartition(_MARK)[2].partition("-")
        pid = rest.partition("-")[0]
        with contextlib.suppress(OSError):
            old = time.time() - leftover.stat().st_mtime > _ABANDONED_AFTER
            ended = host == _host() and pid.isdigit() and not _runs(int(pid))
            if old or ended:
                leftover.unlink()


def _host() -> str:
    """The host name, reduced to letters and digits."""
    return re.sub(r"[^A-Za-z0-9]", "", platform.node()) or "host"


def _escaped(name: str) -> str:
    """``name`` as a glob pattern that matches only itself."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    """Flushes a file's bytes, or a folder's names, to disk; some file systems cannot."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
