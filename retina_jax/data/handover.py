"""Arrays that a worker fills and another process reads, without a copy, through Grain."""

from __future__ import annotations

import contextlib
import multiprocessing.util
import threading
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from grain.multiprocessing import SharedMemoryArray

_kept: set[str] = set()
"""Names of what this process has made and not yet handed over."""
_ending = threading.Event()


class HandoverArray(SharedMemoryArray):
    """Zeros in shared memory. Grain asks for ``metadata`` to pass it on; the reader frees it."""

    @property
    def metadata(self):
        _kept.discard(self.shm.name)
        return super().metadata


def zeros(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array to hand over; what never is, for the reader stopped early, is freed at exit."""
    if _ending.is_set():  # nobody will read it
        return np.zeros(shape, dtype)
    array = HandoverArray(shape, dtype)
    _kept.add(array.shm.name)
    return array


def free_at_exit() -> None:
    """To be called once in a worker."""
    multiprocessing.util.Finalize(None, _free, exitpriority=-100)


def _free() -> None:
    _ending.set()
    for name in list(_kept):
        with contextlib.suppress(FileNotFoundError):
            memory = SharedMemory(name)
            memory.unlink()
