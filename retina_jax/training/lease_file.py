"""The content of a workdir's lease, for commands that only read it; does not import JAX."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

FILE = "lease.json"
RENEWED_EVERY = 10.0  # seconds
STALE_AFTER = 60.0  # seconds without renewal


def identity() -> dict[str, Any]:
    """Host and process, and what distinguishes them from later ones with the same names."""
    own: dict[str, Any] = {"host": platform.node(), "pid": os.getpid()}
    with contextlib.suppress(OSError):  # Linux only
        own["machine"] = _machine()
        own["started"] = _started(os.getpid())
    return own


def _machine() -> str:
    """This boot of this machine, and the container, within which process numbers are unique."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _started(pid: int) -> str:
    """When a process started, in ticks since boot. Raises `OSError` if it is not running."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def runs_here(holder: dict[str, Any]) -> bool:
    """Whether the holder is a running process of this machine."""
    try:
        return holder["machine"] == _machine() and holder["started"] == _started(holder["pid"])
    except (KeyError, OSError):
        return False


def has_ended(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine and has certainly ended."""
    try:
        return holder["machine"] == _machine() and not runs_here(holder)
    except (KeyError, OSError):
        return False
