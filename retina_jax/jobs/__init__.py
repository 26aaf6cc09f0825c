"""One file per command: parses flags, calls `runs` and prints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from retina_jax.config.flags import Parsed


@contextlib.contextmanager
def on_all_hosts(parsed: Parsed) -> Iterator[Console]:
    """For a command that computes: the processes of the run are together while it lasts.

    Yields a console on stderr, quiet in all processes but one. An error leaves at once
    (`parallel.fail` tells the others).
    """
    from rich.console import Console

    from retina_jax import parallel
    from retina_jax.program_cache import keep_compiled_programs

    parallel.start(parsed.flags)
    if parsed.config.train.compilation_cache:
        keep_compiled_programs(getattr(parsed.flags, "workdir", ""))
    quiet = not parallel.is_main()
    yield Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    parallel.finish()
