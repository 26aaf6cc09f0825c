"""Arrays that a worker fills and another process reads, without a copy, through Grain."""

from __future__ import annotations

import contextlib
import multiprocessing.util
import threading
from multiprocessing.shared_memory import SharedMemory
from typing import TypeVar

import jax
import numpy as np
from grain.multiprocessing import SharedMemoryArray

_kept: set[str] = set()
"""Names of what this process has made and not yet handed over."""
_ending = threading.Event()
T = TypeVar("T")


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


def receive(tree: T) -> T:
    """What another process handed over, its names taken from the system at once.

    The memory lives as long as its arrays, and no kill of this process can leave it behind.
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, SharedMemoryArray) and leaf._unlink_on_del:
            leaf._unlink_on_del = False  # Grain would do it when the array goes, if it ever does
            with contextlib.suppress(FileNotFoundError):
                leaf.shm.unlink()
    return tree


def free_at_exit() -> None:
    """To be called once in a worker."""
    multiprocessing.util.Finalize(None, _free, exitpriority=-100)


def _free() -> None:
    _ending.set()
    for name in list(_kept):
        with contextlib.suppress(FileNotFoundError):
            memory = SharedMemory(name)
            memory.unlink()
