"""Works in threads, a few items ahead of the consumer, and keeps the order."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def in_threads(
    function: Callable[[S], T], items: Iterable[S], threads: int
) -> Iterator[tuple[S, T]]:
    """``(item, function(item))`` of each item, in order; at most ``2 * threads`` items are ahead.

    ``items`` is read in the consumer's thread. An error in ``function`` is raised when its item
    is due.
    """
    ahead: collections.deque = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                ahead.append((item, pool.submit(function, item)))
                if len(ahead) > 2 * threads:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:  # also if the consumer closes the stream early
            for _, future in ahead:
                future.cancel()
