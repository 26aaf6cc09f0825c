"""Memory in use, on the host and on its devices, and memory that a program will need."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from retina_jax import parallel

GIB = 2**30


def program_memory(compiled: Any) -> int:
    """Memory that a compiled program (jax.stages.Compiled) takes on each device, bytes.

    Its arguments, temporaries, code, and results that do not reuse the memory of an argument.
    """
    parts = compiled.memory_analysis()
    return (
        parts.argument_size_in_bytes
        + parts.temp_size_in_bytes
        + parts.generated_code_size_in_bytes
        + parts.output_size_in_bytes
        - parts.alias_size_in_bytes
    )


class CompiledSteps:
    """A step of `parallel.Devices`, compiled once for each shape of a batch."""

    def __init__(self, step: Callable):
        self._step = step
        self._programs: dict[Any, Any] = {}

    def compile(self, state: Any, *batch: Any) -> Any:
        """The program for arguments (arrays or shapes); compiles the first time."""
        key = _shapes(batch)
        if key not in self._programs:
            self._programs[key] = self._step.lower(state, *batch).compile()
        return self._programs[key]

    def __call__(self, state: Any, *batch: Any) -> Any:
        if parallel.process_count() > 1:  # pmap itself turns local arrays into global ones
            return self._step(state, *batch)
        return self.compile(state, *batch)(state, *batch)

    def memory_gib(self, *batch: Any) -> float | None:
        """`program_memory` for a batch that was computed; None in a run of several processes."""
        program = self._programs.get(_shapes(batch))
        return None if program is None else round(program_memory(program) / GIB, 4)


def _shapes(batch: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def own_processes() -> Iterator[Path]:
    """The folders in /proc of this process and, after it, all its descendants."""
    pending = [os.getpid()]
    while pending:
        folder = Path(f"/proc/{pending.pop()}")
        with contextlib.suppress(OSError):  # the process has ended
            for task in (folder / "task").iterdir():
                with contextlib.suppress(OSError):  # a thread of it has ended
                    pending += map(int, (task / "children").read_text().split())
        yield folder


def memory_in_use(devices: Iterable[Any]) -> dict[str, float]:
    """Memory in use, GiB: of this host, and of its fullest device, now and at its peak so far.

    ``host_gib`` counts this process and its loader workers, without the pages that the workers
    share with others. Unknown values are left out: for example, CPU devices have no memory of
    their own.
    """
    pages = 0
    for number, folder in enumerate(own_processes()):
        with contextlib.suppress(OSError):
            resident, shared = map(int, (folder / "statm").read_text().split()[1:3])
            pages += resident - (shared if number else 0)
    found = {"host_gib": pages * os.sysconf("SC_PAGE_SIZE") / GIB} if pages else {}
    statistics = [device.memory_stats() or {} for device in devices]
    for name, key in (("device_gib", "bytes_in_use"), ("device_peak_gib", "peak_bytes_in_use")):
        values = [of_device[key] for of_device in statistics if key in of_device]
        if values:
            found[name] = max(values) / GIB
    return found
