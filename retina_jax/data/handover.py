"""A batch that a worker fills and the program reads through Grain's queue, without a copy.

Its memory is a file without a name (``memfd_create``). The kernel frees it when the last process
that holds it ends, so a kill of the program, of a worker or of all at once, at any moment, leaves
nothing behind; nor does the size of ``/dev/shm`` limit it. The queue carries only where the worker
has the file open, in one write that no kill can cut short. The worker keeps it open until the
reader, which has it open by then, says so in the file's last byte.
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

_QUEUES_BYTES = 256 * 1024  # 30 semaphores of Python's queues, a page each, and some room
_SHARED_MEMORY = "/dev/shm"
_handed_over: set[Block] = set()
"""What this process has sent and nobody is known to have opened."""


class SenderDiedError(Exception):
    """The process that sent a batch ended before another had opened it."""

    def __init__(self, pid: int):
        super().__init__(pid)
        self.pid = pid


def available() -> bool:
    """Whether this system has memory without a name: Linux does."""
    return hasattr(os, "memfd_create")


class Block:
    """Zeros, ``array [shape]``, in memory that another process can open."""

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
        """Whether the reader has set the last byte, which `Parcel` adds."""
        return os.pread(self.file, 1, os.fstat(self.file).st_size - 1) == b"\1"


class Parcel:
    """A tree with a block's array among its leaves; unpickled elsewhere, it is the tree itself.

    It goes through `received` there: where the memory is gone, it is what says so.
    """

    def __init__(self, tree: Any, block: Block):
        buffer = io.BytesIO()
        _Pickler(buffer, block.array).dump(tree)
        rest, size = buffer.getvalue(), block.array.nbytes
        os.pwrite(block.file, rest + b"\0", size)  # behind the array; the byte says "opened"
        self._block = block
        self._address = (os.getpid(), block.file, os.fstat(block.file).st_ino)
        self._layout = (block.array.shape, block.array.dtype, len(rest))
        del block.array  # this process is done with it

    def __reduce__(self):
        _handed_over.add(self._block)
        return _open, (*self._address, *self._layout)


@dataclasses.dataclass(frozen=True)
class _Unopened:
    """In place of a tree; raised only in `received`: unpickling is Grain's, and so is closing."""

    pid: int
    error: OSError


def received(item: Any) -> Any:
    """An element as it came; `SenderDiedError` where its sender ended, and its memory with it."""
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
                raise ProcessLookupError(f"{pid} is another process by now")
            array = _mapped(file, shape, dtype)
            rest = os.pread(file, length, array.nbytes)
            os.pwrite(file, b"\1", array.nbytes + length)
        finally:
            os.close(file)
    except OSError as error:
        return _Unopened(pid, error)
    return _Unpickler(io.BytesIO(rest), array).load()


def _mapped(file: int, shape: tuple[int, ...], dtype: type | np.dtype) -> np.ndarray:
    """An array over a file's first bytes; the mapping lives as long as the array."""
    count = math.prod(shape)
    memory = mmap.mmap(file, count * np.dtype(dtype).itemsize)
    return np.frombuffer(memory, dtype, count).reshape(shape)


def _close_opened() -> None:
    for block in list(_handed_over):
        if block.opened():
            _handed_over.discard(block)


class _Pickler(pickle.Pickler):
    """Leaves one array out."""

    def __init__(self, buffer: io.BytesIO, array: np.ndarray):
        super().__init__(buffer, protocol=5)
        self._array = array

    def persistent_id(self, item: Any) -> int | None:
        return 0 if item is self._array else None


class _Unpickler(pickle.Unpickler):
    """Puts it in again."""

    def __init__(self, buffer: io.BytesIO, array: np.ndarray):
        super().__init__(buffer)
        self._array = array

    def persistent_load(self, number: int) -> np.ndarray:
        return self._array


def exit_code(pid: int) -> int | None:
    """Of a child process that is ending, negative for a signal; None where it cannot be known.

    The child is left for `multiprocessing` to reap.
    """
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        wait([handle], timeout=10)  # a process closes its files shortly before it has ended
        ended = os.waitid(os.P_PIDFD, handle, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return None
    finally:
        os.close(handle)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def check_room(workers: int, batches: int, batch_bytes: int) -> None:
    """`UserError` where ``workers`` processes cannot hold ``batches`` each at the same time.

    Batches lie in main memory; ``/dev/shm`` holds the semaphores of Python's queues alone.
    """
    needed = workers * _QUEUES_BYTES
    if os.path.isdir(_SHARED_MEMORY):
        free = shutil.disk_usage(_SHARED_MEMORY).free
        if free < needed:
            raise UserError(
                f"config.data.num_workers={workers} needs {_mebibytes(needed)} of "
                f"{_SHARED_MEMORY}, which has {_mebibytes(free)} free; enlarge it (docker run "
                f"--shm-size={-(-needed // 2**20)}m) or set --config.data.num_workers=0"
            )
    needed = workers * batches * batch_bytes
    free = free_memory()
    if free is not None and free < needed:
        raise UserError(
            f"config.data.num_workers={workers} needs {_mebibytes(needed)} of memory for {batches} "
            f"batches of {_mebibytes(batch_bytes)} per worker, and {_mebibytes(free)} are free; "
            "set a lower --config.data.num_workers or --config.train.batch_size"
        )


def free_memory() -> int | None:
    """Bytes that the system, or the container's limit, still leaves; None where unknown."""
    limits = []
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    with contextlib.suppress(OSError, ValueError):  # no cgroup of version 2, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=None)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
