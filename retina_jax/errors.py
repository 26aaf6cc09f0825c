"""Errors that end a command with one clear line, and the exit code of each.

0 done · 1 a fault, worth a restart · 2 a user's mistake, never restart · 3 finished, with something
left out · 4 stopped by a non-finite loss · 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

DONE, FAULT, MISTAKE, LEFT_OUT, NON_FINITE = 0, 1, 2, 3, 4
INTERRUPTED = 130


class CommandError(Exception):
    """What ends a command with one line instead of a traceback.

    ``details`` are lines that are shown before it, such as every record that cannot be used.
    """

    exit_code = FAULT
    prefix = "stopped"

    def __init__(self, message: str = "", details: Sequence[str] = ()):
        super().__init__(message)
        self.details = tuple(details)


class UserError(CommandError):
    """A mistake in a flag, path, data set or shape: names the value and the fix."""

    exit_code = MISTAKE
    prefix = "error"


class RunError(CommandError):
    """A fault that no flag foresaw, such as a worker that died.

    The last good checkpoint stays; the message says how to go on.
    """


class NonFiniteLossError(RunError):
    """A loss or gradient that is not finite; a restart would meet it again."""

    exit_code = NON_FINITE


def is_disk_full(error: BaseException) -> bool:
    """Whether a fault is a full disk, or a quota that is used up.

    TensorStore, below Orbax, reports it as RESOURCE_EXHAUSTED, as XLA does a lack of device memory.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in ("No space left on device", "Disk quota exceeded"))


def is_out_of_device_memory(error: BaseException) -> bool:
    """Whether XLA ran out of device memory."""
    return "RESOURCE_EXHAUSTED" in str(error) and not is_disk_full(error)


def explain(error: BaseException) -> tuple[int, list[str]] | None:
    """Exit code and lines for stderr; None for a fault that deserves its traceback."""
    if isinstance(error, CommandError):
        details = [f"  {line}" for line in error.details]
        return error.exit_code, [*details, f"{error.prefix}: {error}"]
    if isinstance(error, KeyboardInterrupt):  # where no run catches it, or a second time
        return INTERRUPTED, ["stopped; run the same command again to continue"]
    if is_disk_full(error):
        file = getattr(error, "filename", None)
        where = f" ({file})" if file else ""
        advice = "free some space and run the same command again"
        return FAULT, [f"stopped: no space left on the disk{where}; {advice}"]
    if is_out_of_device_memory(error):
        fix = "lower --config.train.batch_size, --config.eval.batch_size or --config.data.buckets"
        return MISTAKE, [f"error: out of device memory; {fix}"]
    return None
