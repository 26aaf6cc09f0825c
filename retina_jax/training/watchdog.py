"""Ends a run that makes no progress: nothing else notices a process that is alive but stuck."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Iterator

from retina_jax import parallel
from retina_jax.errors import FAULT


class Watchdog:
    """Prints the stacks of all threads and exits with code 1 after ``seconds`` without `progress`.

    0 seconds: never. Off until the first `progress`, and while `paused` (for compilation).
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._last: float | None = None
        self._where = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()

    def progress(self, where: str) -> None:
        """Records progress; ``where`` names it in the message."""
        self._where, self._last = where, time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self._last = None
        yield
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(self._seconds / 4, 5.0)):
            last = self._last
            if last is not None and time.monotonic() - last > self._seconds:
                line = (
                    f"stopped: no progress for {self._seconds:g} s after {self._where} "
                    "(train.watchdog); the stacks of all threads are above; run the same command "
                    "again"
                )
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                parallel.group.fail(FAULT, [line])
                parallel.group.leave(FAULT, [line])
