"""Counts and latencies of a server since it started."""

from __future__ import annotations

import collections
import threading
import time

import numpy as np

_REMEMBERED = 1000
"""Number of latest latencies that the percentiles cover."""


class Statistics:
    """Counts requests and batches; thread-safe."""

    def __init__(self):
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._answers: collections.Counter[int] = collections.Counter()
        self._images = self._batches = 0
        self._latencies: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)

    def answered(self, status: int, seconds: float) -> None:
        """Counts a response of ``/detect``; only successful ones enter the latencies."""
        with self._lock:
            self._answers[status] += 1
            if status == 200:
                self._latencies.append(seconds)

    def ran(self, count: int) -> None:
        """Counts a batch with ``count`` images."""
        with self._lock:
            self._batches += 1
            self._images += count

    def figures(self) -> dict:
        """The fields of `schema.Figures`."""
        with self._lock:
            latencies = {}
            if self._latencies:
                shares = np.percentile(np.array(self._latencies) * 1000, (50, 95, 99))
                latencies = {
                    name: round(float(value), 1)
                    for name, value in zip(("p50", "p95", "p99"), shares, strict=True)
                }
            return {
                "uptime_seconds": round(time.monotonic() - self._started, 1),
                "answers": {str(status): n for status, n in sorted(self._answers.items())},
                "images": self._images,
                "batches": self._batches,
                "images_per_batch": round(self._images / max(1, self._batches), 2),
                "latency_ms": latencies,
            }
