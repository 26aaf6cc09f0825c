"""Stop requests by signal, which reach every process of a run."""

from __future__ import annotations

import os
import signal
import threading

from retina_jax import parallel
from retina_jax.coordination import Point


class StopRequest:
    """True after SIGINT or SIGTERM in any process; a second signal ends the program as usual.

    This program handles both signals itself instead of using JAX's preemption service, which
    handles only SIGTERM and only between steps. Python runs handlers in the main thread, between
    its own instructions, never while XLA compiles. So a thread listens as well; it tells the other
    processes, and ends the program at once if there is nothing to save.

    Outside the main thread, where Python allows no signal handlers, only requests of other
    processes take effect.
    """

    def __init__(self, may_exit: bool = False):
        """``may_exit``: whether a signal may end this program while there is nothing to save."""
        self._may_exit = may_exit
        self._own: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup_before = -1

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._wakeup_before = signal.set_wakeup_fd(self._pipe[1])
            threading.Thread(target=self._listen, args=self._pipe, daemon=True).start()
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        self.nothing_to_save(False)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            os.write(self._pipe[1], b"\0")  # ends the thread, which closes the pipe

    def _receive(self, number: int, _frame: object) -> None:
        self._own = signal.Signals(number)
        for each, handler in self._before.items():
            signal.signal(each, handler)

    @staticmethod
    def _listen(reading: int, writing: int) -> None:
        while number := os.read(reading, 1)[0]:
            if number in (signal.SIGINT, signal.SIGTERM):
                parallel.group.ask_to_stop(number)
        for end in (reading, writing):
            os.close(end)

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that requested the stop, in this or another process."""
        if self._own is None and parallel.group.asked is not None:
            return signal.Signals(parallel.group.asked)
        return self._own

    def __bool__(self) -> bool:
        return self.signal is not None

    def before(self, point: Point) -> bool:
        """Whether to stop before ``point``; the same in all processes, which must all call it.

        Points only increase: step s is (s, 0), and batch b of the evaluation after it (s, b + 1).
        """
        if parallel.process_count() == 1:
            return bool(self)
        return parallel.group.must_stop(point)

    def nothing_to_save(self, unchanged: bool) -> None:
        """Sets whether there is nothing new that a checkpoint would store."""
        if self._may_exit:
            parallel.group.unchanged = unchanged
