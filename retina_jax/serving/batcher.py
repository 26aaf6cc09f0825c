"""Groups the images that wait for the network into batches: one thread, one queue per group."""

from __future__ import annotations

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any

Run = Callable[[Hashable, list[Any]], Sequence[Any]]
"""Takes a group and some of its items; returns the result of each item."""
_MEMORY = 0.2  # weight of the latest batch in the mean of seconds per item


class Full(Exception):
    """The queue has no room."""

    def __init__(self, waiting: int, seconds: int):
        super().__init__(waiting, seconds)
        self.waiting = waiting
        self.seconds = seconds
        """Estimated time until there is room."""


class Closed(Exception):
    """The batcher accepts no more items."""


@dataclasses.dataclass(eq=False)
class _Entry:
    item: Any
    future: Future
    number: int


class Batcher:
    """Runs items in batches of at most ``batch_size`` items of one group, oldest first.

    A batch starts as soon as the previous one ends, with the items that wait at that moment. No
    item is delayed to fill a batch; batches grow by themselves when items arrive faster than they
    are processed.
    """

    def __init__(
        self,
        run: Run,
        batch_size: int,
        capacity: int,
        pays_from: Callable[[Hashable], int] = lambda group: 2,
        ran: Callable[[int], None] = lambda count: None,
    ):
        """Starts the thread.

        Args:
          run: called in the thread. If it raises, every item of the batch gets the error.
          capacity: maximum number of items that may wait.
          pays_from: the smallest number of waiting items of a group for which a batch is faster
            than one item at a time.
          ran: called with the number of items of each batch that ran.
        """
        self._run, self._size, self._capacity = run, batch_size, capacity
        self._pays_from, self._ran = pays_from, ran
        self._changed = threading.Condition()
        self._queues: dict[Hashable, collections.deque[_Entry]] = {}
        self._number, self._closed = 0, False
        self._seconds = 0.0  # per item
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of items that no batch has taken yet."""
        with self._changed:
            return self._count()

    def submit(self, items: Sequence[tuple[Hashable, Any]]) -> list[Future]:
        """Queues all ``(group, item)`` pairs, or none; cancelling a future frees its place.

        Raises `Full` or `Closed`.
        """
        with self._changed:
            if self._closed:
                raise Closed
            if self._count() + len(items) > self._capacity:
                self._drop_cancelled()
            if (waiting := self._count()) + len(items) > self._capacity:
                raise Full(waiting, max(1, math.ceil(waiting * self._seconds)))
            futures = []
            for group, item in items:
                entry = _Entry(item, Future(), self._number)
                self._number += 1
                self._queues.setdefault(group, collections.deque()).append(entry)
                futures.append(entry.future)
            self._changed.notify()
            return futures

    def close(self, seconds: float = 0.0) -> bool:
        """Accepts no more items, and runs the waiting ones for up to ``seconds``.

        Cancels those that still wait then. Returns whether the thread has ended.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            for queue in self._queues.values():
                for entry in queue:
                    entry.future.cancel()
        return not self._thread.is_alive()

    def _count(self) -> int:
        return sum(map(len, self._queues.values()))

    def _drop_cancelled(self) -> None:
        for group, queue in list(self._queues.items()):
            left = collections.deque(e for e in queue if not e.future.cancelled())
            self._queues[group] = left
            if not left:
                del self._queues[group]

    def _take(self) -> tuple[Hashable, list[_Entry]] | None:
        """Waits for the next batch and returns it; None after `close`."""
        with self._changed:
            while True:
                self._drop_cancelled()
                if self._queues:
                    break
                if self._closed:
                    return None
                self._changed.wait()
            group = min(self._queues, key=lambda g: self._queues[g][0].number)
            queue = self._queues[group]
            count = min(len(queue), self._size)
            if count < self._pays_from(group):
                count = 1
            taken = [queue.popleft() for _ in range(count)]
            if not queue:
                del self._queues[group]
            return group, taken

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            group, taken = batch
            taken = [e for e in taken if e.future.set_running_or_notify_cancel()]
            if not taken:
                continue
            started = time.monotonic()
            try:
                results = list(self._run(group, [e.item for e in taken]))
                if len(results) != len(taken):
                    raise RuntimeError(f"{len(results)} results for {len(taken)} items")
            except Exception as error:
                for entry in taken:
                    entry.future.set_exception(error)
                continue
            each = (time.monotonic() - started) / len(taken)
            self._seconds = (
                each if not self._seconds else ((1 - _MEMORY) * self._seconds + _MEMORY * each)
            )
            self._ran(len(taken))
            for entry, result in zip(taken, results, strict=True):
                entry.future.set_result(result)
