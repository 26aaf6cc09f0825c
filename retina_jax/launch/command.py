"""The command to run, as a user would type it, and how it passes other parsers unchanged."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from retina_jax.errors import UserError

WORKDIR, DATA_DIR = "workdir", "config.data.dir"
_MOUNT = {
    "gke": "mount a bucket with --mount=gs://BUCKET:/PATH or a volume claim with "
    "--mount=CLAIM:/PATH",
    "queued-resource": "mount an NFS export with --mount=HOST:/EXPORT:/PATH",
}
"""How each kind of job gets a shared folder; the nodes of a SLURM cluster have one."""
_ADDRESS = re.compile(r"gs://[^/]")
"""An address that the command opens itself (`files.open_path`)."""


def flag_value(words: Sequence[str], flag: str) -> str | None:
    """The last value of ``--flag`` in ``words``; None if it is not there."""
    value = None
    for i, word in enumerate(words):
        if match := _is_flag(word, flag):
            value = match[1] if match[1] is not None else "".join(words[i + 1 : i + 2])
    return value


def with_flag(words: Sequence[str], flag: str, value: str) -> list[str]:
    """``words`` with ``--flag=value`` at the end, instead of its earlier values."""
    kept, skip = [], False
    for word in words:
        match = None if skip else _is_flag(word, flag)
        if not (match or skip):
            kept.append(word)
        skip = bool(match) and match[1] is None
    return [*kept, f"--{flag}={value}"]


def _is_flag(word: str, flag: str) -> re.Match | None:
    return re.fullmatch(rf"--?{re.escape(flag)}(?:=(.*))?", word, re.DOTALL)


def kubernetes_arguments(words: Sequence[str]) -> list[str]:
    """``words`` for a container's ``args``, where Kubernetes replaces ``$(NAME)`` and ``$$``."""
    return [word.replace("$", "$$") for word in words]


def check_workdir(words: Sequence[str], kind: str, mounts: Sequence[str]) -> None:
    """`UserError` if the workdir would be lost with the machine that the command runs on.

    Args:
      mounts: absolute paths of shared folders in the container.
    """
    workdir = flag_value(words, WORKDIR)
    if workdir is None or _ADDRESS.match(workdir):
        return
    path = PurePosixPath(posixpath.normpath(workdir))
    if any(path.is_relative_to(mount) for mount in mounts):
        return
    if mounts:
        fix = f"put it below {' or '.join(mounts)}"
    else:
        fix = f"{_MOUNT[kind]}, and set --workdir=/PATH/FOLDER, or set --workdir=gs://BUCKET/FOLDER"
    raise UserError(f"--workdir={workdir} is lost when the job restarts on another machine; {fix}")


def check_address(flag: str, value: str) -> None:
    """`UserError` if ``value`` is an address that the command cannot open.

    Args:
      flag: the flag whose value it is, as the user typed it.
    """
    if "://" in value and not _ADDRESS.match(value):
        raise UserError(
            f"{flag}={value} is an address that the command cannot open; set "
            f"{flag}=gs://BUCKET/FOLDER, or a folder that all hosts see"
        )


def digest(job: object) -> str:
    """Eight hexadecimal digits that tell jobs of different settings or commands apart."""
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:8]
