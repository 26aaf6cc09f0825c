"""One file per command: parses flags, calls `runs` and prints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ml_collections
    from rich.console import Console

    from retina_jax.config.flags import Parsed


def config_of_run(workdir: str) -> ml_collections.ConfigDict:
    """The config of the run in ``--workdir``, for commands that need no ``--config``."""
    from retina_jax.training.workdir import read_config, workdir_at

    return read_config(workdir_at(workdir))


@contextlib.contextmanager
def on_all_hosts(parsed: Parsed) -> Iterator[Console]:
    """Joins the processes of a run for the duration of a command that computes.

    Yields a console on stderr, silent in all processes but one. An error ends all processes at
    once (`parallel.fail`).
    """
    from rich.console import Console

    from retina_jax import parallel
    from retina_jax.program_cache import keep_compiled_programs

    parallel.start(parsed.flags)
    if parsed.config.train.compilation_cache:
        keep_compiled_programs(getattr(parsed.flags, "workdir", None) or "")
    quiet = not parallel.is_main()
    yield Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    parallel.finish()
