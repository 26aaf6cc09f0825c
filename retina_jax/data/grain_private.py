"""Undocumented behaviour of Grain that the loader relies on; the test shows where it is defined.

In addition, `handover` relies on this: an element that is not an array is pickled into Grain's
queue, and unpickled before its worker can end.
"""

from __future__ import annotations

import re

from absl import flags


def parse_flags() -> None:
    """Lets Grain read its own flags in a program that has not parsed flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def is_death_of_worker(error: RuntimeError) -> bool:
    """Whether Grain raised this because a worker process ended."""
    return "terminated unexpectedly" in str(error)


def exit_code_in(error: RuntimeError) -> int | None:
    """Exit code of the dead worker in `error`, negative for a signal."""
    found = re.search(r"exit code (-?\d+)", str(error))
    return int(found[1]) if found else None
