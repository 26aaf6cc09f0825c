"""The one atomic writer: a file is there whole or not at all, whatever ends the program."""

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
"""In the name of every temporary file: ``.NAME.unfinished-HOST-PID-RANDOM`` beside its target."""
_ABANDONED_AFTER = 24 * 3600.0  # seconds; another host of a shared disk may still be writing


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; what was written there becomes ``path``.

    The temporary name is unique and has the suffix of ``path``. Parent folders are made. On a clean
    exit the file is flushed to disk, renamed over ``path``, and the rename flushed; on an exception
    it is removed and ``path`` stays as it was. Temporary files that killed programs left of the
    same ``path`` are removed. Raises `OSError` where the disk does.
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
    """Removes temporary files that killed programs left in ``folder`` (of the target ``name``).

    Those of programs that still run here stay, and so do recent ones of other hosts.
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
    """This machine's name, in letters and digits."""
    return re.sub(r"[^A-Za-z0-9]", "", platform.node()) or "host"


def _escaped(name: str) -> str:
    """``name`` as a pattern that matches itself alone."""
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
    """Its bytes (or, of a folder, its names) to the disk; some file systems cannot."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
