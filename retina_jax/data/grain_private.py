"""What the loader uses of Grain beyond what Grain documents; its test says where to look.

Besides the names below, `handover` relies on this: an element that is no array crosses Grain's
queue by pickle, and is unpickled before its worker may end.
"""

from __future__ import annotations

import re

from absl import flags


def parse_flags() -> None:
    """Lets Grain read flags of its own in a program that has not parsed any."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def is_death_of_worker(error: RuntimeError) -> bool:
    """Whether Grain raised this because a worker process ended."""
    return "terminated unexpectedly" in str(error)


def exit_code_in(error: RuntimeError) -> int | None:
    """Exit code of the worker that `is_death_of_worker` is about; negative: its signal."""
    found = re.search(r"exit code (-?\d+)", str(error))
    return int(found[1]) if found else None
