"""Atomic file writes: a file is written completely or not at all, even if the program is killed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MARK = ".unfinished-"
"""Part of each temporary file's name: ``.NAME.unfinished-HOST-PID-RANDOM`` next to its target."""
_ABANDONED_AFTER = 24 * 3600.0  # seconds; another host on a shared disk may still be writing


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path next to ``path``; on exit, the file written there becomes ``path``.

    The temporary name is unique and keeps the suffix of ``path``. Parent folders are created. On
    success the file is flushed to disk and renamed to ``path``, and the rename is flushed. On an
    exception the file is removed and ``path`` is unchanged. Temporary files for the same ``path``
    that killed programs left behind are removed. Raises `OSError` if the file system does.
    """
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
