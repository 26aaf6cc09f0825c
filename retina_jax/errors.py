"""Errors that end a command with one clear line, and their exit codes.

0 success · 1 a fault that a restart may fix · 2 a usage error, never restart · 3 finished, but
something was left out · 4 stopped by a non-finite loss · 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from retina_jax import object_store

DONE, FAULT, MISTAKE, LEFT_OUT, NON_FINITE = 0, 1, 2, 3, 4
INTERRUPTED = 130


class CommandError(Exception):
    """Ends a command with one line instead of a traceback.

    ``details`` are printed before that line, for example every unusable record.
    """

    exit_code = FAULT
    prefix = "stopped"

    def __init__(self, message: str = "", details: Sequence[str] = ()):
        super().__init__(message)
        self.details = tuple(details)


class UserError(CommandError):
    """An error in a flag, path, data set or shape; the message states the value and the fix."""

    exit_code = MISTAKE
    prefix = "error"


class RunError(CommandError):
    """A fault at run time, such as a dead worker process.

    The last good checkpoint is kept; the message says how to continue.
    """


class EvaluationError(RunError):
    """An evaluation failed; training continues, and the next evaluation tries again."""


class NonFiniteLossError(RunError):
    """A non-finite loss or gradient; restarting with the same flags would repeat it."""

    exit_code = NON_FINITE

    def __init__(self, message: str = "", details: Sequence[str] = (), step: int | None = None):
        super().__init__(message, details)
        self.step = step


def check_local(path: str, flag: str) -> None:
    """Raises `UserError` for the address of an object store where only a folder will do."""
    if "://" in path:
        raise UserError(
            f"{flag}={path} is not a local folder; write to one, then copy it with: gcloud "
            f"storage cp --recursive FOLDER {path}"
        )


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means a full disk or an exhausted quota.

    Orbax's TensorStore reports it as RESOURCE_EXHAUSTED, which XLA uses for lack of device memory.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in ("No space left on device", "Disk quota exceeded"))


def is_out_of_device_memory(error: BaseException) -> bool:
    """Whether XLA ran out of device memory."""
    elsewhere = is_disk_full(error) or object_store.reason(error) is not None  # its limit of rates
    return "RESOURCE_EXHAUSTED" in str(error) and not elsewhere


def explain(error: BaseException) -> tuple[int, list[str]] | None:
    """Exit code and lines for stderr; None for an unexpected error, which keeps its traceback."""
    if isinstance(error, CommandError):
        details = [f"  {line}" for line in error.details]
        return error.exit_code, [*details, f"{error.prefix}: {error}"]
    if isinstance(error, KeyboardInterrupt):  # outside a run, or the second Ctrl-C
        return INTERRUPTED, ["stopped; run the same command again to continue"]
    if is_disk_full(error):
        file = getattr(error, "filename", None)
        where = f" ({file})" if file else ""
        advice = "free some space and run the same command again"
        return FAULT, [f"stopped: no space left on disk{where}; {advice}"]
    if why := object_store.reason(error):
        if object_store.is_refusal(error):
            fix = "log in with: gcloud auth application-default login, or ask for access"
            return MISTAKE, [f"error: the object store refuses access ({why}); {fix}"]
        advice = "what was written is kept; run the same command again"
        return FAULT, [f"stopped: the object store failed ({why}); {advice}"]
    if is_out_of_device_memory(error):
        fix = "lower --config.train.batch_size or --config.eval.batch_size"
        return MISTAKE, [f"error: out of device memory; {fix}, or shrink --config.data.buckets"]
    return None
