"""Object stores: ``gs://`` addresses, through etils.epath and gcsfs.

An object is written whole or not at all, and every host sees it at once. Objects are not appended
to, renamed or locked, and folders exist only as parts of names. `files` is the only caller.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import logging
import os
import re
import secrets
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PREFIX = "gs://"
_LIBRARIES = re.compile(r"(gcsfs|aiohttp|google\.(auth|api_core|cloud))(\.|$)")
"""Packages whose errors come from a store: classes that they define, and errors that they raise."""
_MARKS = (PREFIX, "/storage/v1/b/")
"""Texts that appear in messages of gcsfs, TensorStore and Orbax about a store."""
_REFUSALS = (
    "Forbidden", "PERMISSION_DENIED", "UNAUTHENTICATED", "does not have storage.",
    "Invalid Credentials", "default credentials were not found",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StoredObject:
    """An object and what identifies its content."""

    name: str
    """Relative to the folder that was listed."""
    size: int
    crc32c: str
    """As base64; "" if the store does not say."""


def is_address(path: str | os.PathLike) -> bool:
    """Whether ``path`` is an address of an object store instead of a path on disk."""
    return os.fspath(path).startswith(PREFIX)


def path_at(address: str) -> Any:
    """The `etils.epath.Path` of an address. Raises `ImportError` without gcsfs."""
    _system()
    from etils import epath

    return epath.Path(address)


@functools.cache
def _system() -> Any:
    """The file system of gcsfs, the same instance that epath uses."""
    os.environ.setdefault("EPATH_USE_TF", "false")  # else epath loads TensorFlow if it is installed
    import fsspec
    import gcsfs  # noqa: F401  (the message of a missing package names it)

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs what it raises, as tracebacks
    # the other hosts of a run write, too
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem("gcs", finalize_on_close=True)


def reason(error: BaseException) -> str | None:
    """Why a store failed, in one line; None if the error is not one of a store."""
    text = " ".join(str(error).split())
    modules = [c.__module__ for c in type(error).__mro__]
    modules += [
        frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    of_library = any(map(_LIBRARIES.match, modules))
    if not of_library and not any(mark in text for mark in _MARKS):
        return None
    return f"{type(error).__name__}: {text[:300]}"


def is_refusal(error: BaseException) -> bool:
    """Whether an error means missing permissions or credentials, which no restart can fix."""
    return getattr(error, "code", None) in (401, 403) or any(w in str(error) for w in _REFUSALS)


@contextlib.contextmanager
def os_errors(path: Any) -> Iterator[None]:
    """Converts errors of a store to those of a disk, with the address in the message.

    Raises `FileNotFoundError`, `FileExistsError` and `PermissionError` as usual, and
    `ConnectionError` for all others, which a restart may fix.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError) as error:
        raise type(error)(f"{path}: {' '.join(str(error).split())[:300]}") from error
    except Exception as error:
        why = reason(error)
        if why is None or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        kind = PermissionError if is_refusal(error) else ConnectionError
        raise kind(f"{path}: {why}") from error


def upload(source: Path, target: Any) -> None:
    """Uploads a local file to an object, atomically. Raises `OSError`."""
    with os_errors(target):
        _system().put_file(str(source), str(target), consistency="size")


def create(path: Any, content: bytes) -> None:
    """Writes a new object; raises `FileExistsError` if it exists."""
    with os_errors(path):
        if _system().exists(str(path)):
            raise FileExistsError("exists")
        # the store refuses it (ifGenerationMatch=0) if another host was faster
        _system().pipe_file(str(path), content, mode="create")


def modified(path: Any) -> float:
    """When an object was last written, by the clock of the store, in seconds since the epoch."""
    with os_errors(path):
        return _system().info(str(path))["mtime"].timestamp()


def probe(folder: Any) -> float:
    """Writes and removes an object in ``folder``; returns the time by the clock of the store.

    Raises `FileNotFoundError` if the bucket does not exist, `PermissionError` without write access.
    """
    path = folder / f".probe-{secrets.token_hex(8)}"
    with os_errors(folder):
        _system().pipe_file(str(path), b"probe")
        try:
            return modified(path)
        finally:
            _system().rm_file(str(path))


def move(source: Any, target: Any) -> None:
    """Copies all objects below ``source`` to ``target``, then removes the originals."""
    with os_errors(source):
        _system().mv(str(source), str(target), recursive=True)


def list_objects(folder: Any) -> list[StoredObject]:
    """The objects below a folder, by name."""
    root = str(folder).removeprefix(PREFIX) + "/"
    with os_errors(folder):
        found = _system().find(str(folder), detail=True)
    return [
        StoredObject(name.removeprefix(root), int(info["size"]), info.get("crc32c", ""))
        for name, info in sorted(found.items())
        if not name.endswith("/")  # stands for a folder
    ]


def download(source: Any, target: Path, expected: StoredObject | None = None) -> None:
    """Copies an object to a local file.

    Raises `OSError`, also if size or checksum of the copy differ from ``expected``.
    """
    with os_errors(source):
        _system().get_file(str(source), str(target))
    if expected is None:
        return
    size = target.stat().st_size
    if size != expected.size or (expected.crc32c and _crc32c(target) != expected.crc32c):
        raise ConnectionError(
            f"{source}: the copy of {size} bytes differs from the object of {expected.size} bytes"
        )


def _crc32c(path: Path) -> str:
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum.update(block)
    return base64.b64encode(checksum.digest()).decode()


class Mirror:
    """A local folder for files that grow, each of which is uploaded whole to ``folder``.

    Uploads run in a thread. If one fails, the next one repeats it, so a run survives a network
    outage.
    """

    def __init__(self, folder: Any):
        self._folder = folder
        self._scratch = tempfile.TemporaryDirectory(prefix="retina_jax-")
        self.local = Path(self._scratch.name)
        self._uploaded: dict[Path, tuple[int, int]] = {}
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "uploads")
        self._waiting = threading.Lock()

    def upload(self) -> None:
        """Starts to upload the files that have changed; returns at once."""
        if self._waiting.acquire(blocking=False):  # else a call that has yet to look sees all
            self._thread.submit(self._in_thread)

    def _in_thread(self) -> None:
        self._waiting.release()
        with contextlib.suppress(OSError):
            self._upload_changed()

    def _upload_changed(self) -> None:
        for path in sorted(p for p in self.local.rglob("*") if p.is_file()):
            status = path.stat()
            version = (status.st_size, status.st_mtime_ns)
            if self._uploaded.get(path) != version:
                upload(path, self._folder / path.relative_to(self.local).as_posix())
                self._uploaded[path] = version

    def close(self) -> None:
        """Uploads the rest. Raises `OSError` if that fails."""
        self._thread.shutdown()
        try:
            self._upload_changed()
        finally:
            self._scratch.cleanup()
