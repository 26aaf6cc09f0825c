"""Passes batches from workers to the main process without a copy.

A batch is in an anonymous file (``memfd_create``). The kernel frees it when the last process that
has it open ends, so killing any of the processes at any time leaves nothing behind, and the size of
``/dev/shm`` does not limit it. Grain's queue only carries the address of the worker's open file, in
one write that a kill cannot truncate. The worker keeps the file open until the reader has opened it
too, which the reader signals in the last byte of the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import mmap
import os
import pickle
import shutil
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from retina_jax.errors import UserError

_QUEUES_BYTES = 256 * 1024  # 30 semaphores of Python's queues, one page each, plus a margin
_SHARED_MEMORY = "/dev/shm"
_handed_over: set[Block] = set()
"""Blocks that this process has sent and that may not have been opened yet."""


class SenderDiedError(Exception):
    """The process that sent a batch ended before the batch was opened."""

    def __init__(self, pid: int):
        super().__init__(pid)
        self.pid = pid


def available() -> bool:
    """Whether the system supports anonymous files: Linux does."""
    return hasattr(os, "memfd_create")


class Block:
    """An array of zeros, ``array [shape]``, in memory that another process can open."""

    def __init__(self, shape: tuple[int, ...], dtype: type):
        _close_opened()
        size = math.prod(shape) * np.dtype(dtype).itemsize
        self.file = os.memfd_create("retina_jax")
        os.ftruncate(self.file, size)
        self.array = _mapped(self.file, shape, dtype)

    def __del__(self):
        if hasattr(self, "file"):
            os.close(self.file)

    def opened(self) -> bool:
        """Whether the reader has set the last byte, which `Parcel` appends."""
        return os.pread(self.file, 1, os.fstat(self.file).st_size - 1) == b"\1"


class Parcel:
    """A tree with a block's array among its leaves; unpickles to the tree in another process.

    Pass the unpickled object to `received`, which raises an error if the memory is gone.
    """

    def __init__(self, tree: Any, block: Block):
        buffer = io.BytesIO()
        _Pickler(buffer, block.array).dump(tree)
        rest, size = buffer.getvalue(), block.array.nbytes
        os.pwrite(block.file, rest + b"\0", size)  # after the array; the last byte means "opened"
        self._block = block
        self._address = (os.getpid(), block.file, os.fstat(block.file).st_ino)
        self._layout = (block.array.shape, block.array.dtype, len(rest))
        del block.array  # this process no longer needs it

    def __reduce__(self):
        _handed_over.add(self._block)
        return _open, (*self._address, *self._layout)


@dataclasses.dataclass(frozen=True)
class _Unopened:
    """Replaces a tree that could not be opened.

    The error is raised only in `received`, because Grain unpickles elements, also while it closes.
    """

    pid: int
    error: OSError


def received(item: Any) -> Any:
    """The received element; `SenderDiedError` if its sender ended and its memory is gone."""
    if not isinstance(item, _Unopened):
        return item
    if isinstance(item.error, (FileNotFoundError, ProcessLookupError)):
        raise SenderDiedError(item.pid)
    raise item.error


def _open(
    pid: int, number: int, inode: int, shape: tuple[int, ...], dtype: np.dtype, length: int
) -> Any:
    try:
        file = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(file).st_ino != inode:
                raise ProcessLookupError(f"{pid} is now another process")
            array = _mapped(file, shape, dtype)
            rest = os.pread(file, length, array.nbytes)
            os.pwrite(file, b"\1", array.nbytes + length)
        finally:
            os.close(file)
    except OSError as error:
        return _Unopened(pid, error)
    return _Unpickler(io.BytesIO(rest), array).load()


def _mapped(file: int, shape: tuple[int, ...], dtype: type | np.dtype) -> np.ndarray:
    """An array mapped to a file's first bytes; the mapping lives as long as the array."""
    count = math.prod(shape)
    memory = mmap.mmap(file, count * np.dtype(dtype).itemsize)
    return np.frombuffer(memory, dtype, count).reshape(shape)


def _close_opened() -> None:
    for block in list(_handed_over):
        if block.opened():
            _handed_over.discard(block)


class _Pickler(pickle.Pickler):
    """Pickles a tree without one array."""

    def __init__(self, buffer: io.BytesIO, array: np.ndarray):
        super().__init__(buffer, protocol=5)
        self._array = array

    def persistent_id(self, item: Any) -> int | None:
        return 0 if item is self._array else None


class _Unpickler(pickle.Unpickler):
    """Unpickles a tree and inserts the array."""

    def __init__(self, buffer: io.BytesIO, array: np.ndarray):
        super().__init__(buffer)
        self._array = array

    def persistent_load(self, number: int) -> np.ndarray:
        return self._array


def exit_code(pid: int) -> int | None:
    """Exit code of a child process that is ending, negative for a signal; None if unknown.

    Does not reap the child; `multiprocessing` does.
    """
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        wait([handle], timeout=10)  # a process closes its files shortly before it ends
        ended = os.waitid(os.P_PIDFD, handle, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return None
    finally:
        os.close(handle)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def check_room(workers: int, batches: int, batch_bytes: int) -> None:
    """`UserError` if memory is too small for ``batches`` batches in each of ``workers`` processes.

    Batches are in main memory; ``/dev/shm`` only holds the semaphores of Python's queues.
    """
    needed = workers * _QUEUES_BYTES
    if os.path.isdir(_SHARED_MEMORY):
        free = shutil.disk_usage(_SHARED_MEMORY).free
        if free < needed:
            raise UserError(
                f"config.data.num_workers={workers} needs {_mebibytes(needed)} in "
                f"{_SHARED_MEMORY}, but only {_mebibytes(free)} is free; enlarge it (docker run "
                f"--shm-size={-(-needed // 2**20)}m) or set --config.data.num_workers=0"
            )
    needed = workers * batches * batch_bytes
    free = free_memory()
    if free is not None and free < needed:
        raise UserError(
            f"config.data.num_workers={workers} needs {_mebibytes(needed)} of memory for {batches} "
            f"batches of {_mebibytes(batch_bytes)} per worker, but only {_mebibytes(free)} is "
            "free; lower --config.data.num_workers or --config.train.batch_size"
        )


def free_memory() -> int | None:
    """Bytes of memory available within the system's and the container's limit; None if unknown."""
    limits = []
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    with contextlib.suppress(OSError, ValueError):  # no cgroup of version 2, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=None)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
