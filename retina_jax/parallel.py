"""The only module that knows about pmap, device counts and processes.

State is replicated without a leading axis; a batch is split along its first axis. Both are placed
on the devices before the call, because donating an ``in_axes=None`` argument requires it. Each
process holds the parts of its own devices; pmap runs over the devices of all processes.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import functools
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # no public way to the key-value store
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from retina_jax.coordination import LOST_AFTER, Group
from retina_jax.errors import FAULT, RunError, UserError, is_out_of_device_memory
from retina_jax.placement import place_in_run
from retina_jax.wording import counted

AXIS = "devices"
T = TypeVar("T")

group = Group(None, 0, 1, platform.node())
"""The processes of this run; one, until `start` finds that there are more."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """The local devices that share a batch."""

    devices: tuple[jax.Device, ...]

    @classmethod
    def local(cls, count: int | None = None) -> Devices:
        """All devices of this host, or the first ``count``."""
        return cls(tuple(jax.local_devices()[:count]))

    def __len__(self) -> int:
        return len(self.devices)

    @property
    def global_count(self) -> int:
        return len(self.devices) * jax.process_count()

    def describe(self) -> str:
        return f"{self.global_count} × {self.devices[0].device_kind}"

    def memory_limit(self) -> int | None:
        """Bytes that programs may use on each device of this host; None: unknown, as on CPUs."""
        limits = [(device.memory_stats() or {}).get("bytes_limit") for device in self.devices]
        return None if None in limits else min(limits)

    def shapes_of(self, shapes: T) -> T:
        """What `shard` makes of arrays with these shapes (jax.ShapeDtypeStruct)."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (len(self), x.shape[0] // len(self), *x.shape[1:]), x.dtype
            ),
            shapes,
        )

    def _sharding(self, *spec: str) -> NamedSharding:
        return NamedSharding(Mesh(np.array(self.devices), (AXIS,)), PartitionSpec(*spec))

    def check_batch(self, size: int, field: str, micro_batches: int = 1) -> int:
        """This host's share of a global batch; `UserError` if the devices cannot share it equally.

        Each device processes its share in ``micro_batches`` (``train.accumulate``) equal parts.
        """
        count = self.global_count * micro_batches
        if size % count:
            fix = max(1, round(size / count)) * count
            parts = counted(self.global_count, "device")
            if micro_batches > 1:
                parts += f" × {micro_batches} micro-batches (config.train.accumulate)"
            raise UserError(
                f"config.{field}={size} must be a multiple of the {parts}; "
                f"set --config.{field}={fix}"
            )
        return size // jax.process_count()

    def replicate(self, tree: T) -> T:
        """A copy of ``tree`` on every device, without a leading axis."""
        return jax.device_put(tree, self._sharding())

    def shard(self, tree: T) -> T:
        """Host arrays ``[n, …]`` to ``[devices, n / devices, …]``, one part per device."""

        def split(x):
            return np.reshape(x, (len(self), len(x) // len(self), *np.shape(x)[1:]))

        return jax.device_put(jax.tree.map(split, tree), self._sharding(AXIS))

    def _pmap(self, step: Callable, **options: Any) -> Callable:
        # given devices, pmap would sum over those alone; without, it takes all of all processes
        if group.count == 1:
            options["devices"] = self.devices
        return jax.pmap(step, axis_name=AXIS, **options)

    def train_step(self, step: Callable) -> Callable:
        """``(state, batch) -> (state, metrics)`` over the devices; donates the old state."""
        return self._pmap(step, in_axes=(None, 0), out_axes=None, donate_argnums=(0,))

    def predict_step(self, step: Callable) -> Callable:
        """``(variables, images, sizes) -> [devices, n / devices, …]`` over the devices."""
        return self._pmap(step, in_axes=(None, 0, 0))

    @functools.cached_property
    def _sums_of_bits(self) -> Callable:
        return self._pmap(lambda tree, zero: _sum_of_bits(tree) + zero, in_axes=(None, 0))

    def check_equal(self, tree: Any, when: str) -> None:
        """Raises `RunError`, naming the hosts, unless all devices of all processes hold the same.

        ``tree`` is replicated; compares a sum over the bits of each array.
        """
        if self.global_count == 1:
            return
        sums = self._sums_of_bits(tree, self.shard(np.zeros(len(self), np.uint32)))
        mine = " ".join(str(int(s.data.ravel()[0])) for s in sums.addressable_shards)
        every = group.exchange("state", mine)
        expected = every[0].split()[0]
        drifted = [
            group.name(i) for i, values in enumerate(every) if set(values.split()) != {expected}
        ]
        if drifted:
            raise RunError(
                f"{when}: weights, batch statistics or optimiser state differ between devices "
                f"({', '.join(drifted)} against {group.name(0)}); the checkpoints before that are "
                "good; check the hardware, then run the same command again"
            )


def _sum_of_bits(tree: Any) -> jax.Array:
    """One number of all bits of all arrays; a changed bit changes it."""
    total = jnp.zeros((), jnp.uint32)
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        bits = jax.lax.bitcast_convert_type(leaf.ravel(), jnp.uint32)
        # odd factors, so that no single change is lost, and two that swap places are seen
        place = jax.lax.iota(jnp.uint32, bits.size) * jnp.uint32(2) + jnp.uint32(1)
        total = total * jnp.uint32(31) + jnp.uint32(i) + (bits * place).sum(dtype=jnp.uint32)
    return total


@contextlib.contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Turns an out-of-memory error of the device into a `UserError` with ``advice``."""
    try:
        yield
    except Exception as error:
        if not is_out_of_device_memory(error):
            raise
        raise UserError(f"out of device memory; {advice}") from error


def fetch(tree: Any) -> Any:
    """Copies device arrays to NumPy; blocks until they are ready."""
    return jax.tree.map(np.asarray, tree)


def join(tree: Any) -> Any:
    """NumPy ``[devices, n / devices, …]`` to ``[n, …]``: the inverse of `Devices.shard`."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *np.shape(x)[2:]), tree)


def process_index() -> int:
    return group.index


def process_count() -> int:
    return group.count


def is_main() -> bool:
    """Whether this process writes the files and the report that a run has once."""
    return group.index == 0


def gather(tree: T) -> list[T]:
    """NumPy arrays of equal shapes in every process: the tree of each, in their order, bit for bit.

    All processes must call it.
    """
    if group.count == 1:
        return [tree]
    # bytes, because JAX would turn float64 into float32
    raw = jax.tree.map(lambda x: np.ascontiguousarray(x).reshape(-1).view(np.uint8), tree)
    gathered = multihost_utils.process_allgather(raw)
    return [
        jax.tree.map(lambda x, every, i=i: every[i].view(x.dtype).reshape(x.shape), tree, gathered)
        for i in range(group.count)
    ]


def prefetch(items: Iterable[Any], put: Callable[[Any], T], depth: int = 2) -> Iterator[T]:
    """Yields ``put(item)`` for each item and prefetches ``depth`` items."""
    queue: collections.deque[T] = collections.deque()
    for item in items:
        queue.append(put(item))
        if len(queue) > depth:
            yield queue.popleft()
    yield from queue


_INITIALIZE_WITHIN = 300  # seconds until all processes must have been started


def start(flags: Any) -> None:
    """Joins this process to its run; call it before any device is used.

    ``flags`` has ``coordinator``, ``num_processes`` and ``process_id``. If they are None,
    they come from $RETINA_JAX_COORDINATOR, $RETINA_JAX_NUM_PROCESSES and $RETINA_JAX_PROCESS_ID, or
    else from Cloud TPU, GKE or SLURM. Without other processes, does nothing.

    Raises `UserError` for values that contradict each other, and `RunError` if the others do not
    join within five minutes.
    """
    global group
    options = place_in_run(flags.coordinator, flags.num_processes, flags.process_id)
    if options is None:
        return
    # our own handlers save and agree on the step (`training.stop`); JAX's would take the signal
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=_INITIALIZE_WITHIN,
            heartbeat_timeout_seconds=round(LOST_AFTER) + 25,
            shutdown_timeout_seconds=60,
        )
    except Exception as error:
        place = options.get("coordinator_address") or "the address in the environment"
        first = str(error).strip().splitlines()[0]
        raise RunError(
            f"the processes of the run did not find each other at {place} ({first}); start the "
            f"same command on every host within {_INITIALIZE_WITHIN} s, and check that all hosts "
            "can reach this address"
        ) from error
    client = distributed.global_state.client
    group = Group(client, jax.process_index(), jax.process_count(), platform.node())
    _explain_abort()


def fail(error: BaseException, explained: tuple[int, list[str]] | None) -> None:
    """Ends all processes of a run with the error of this one; returns only in a run of one.

    A regular exit of Python would wait for processes that never arrive.
    """
    if group.count == 1:
        return
    if explained is None:
        if any(word in str(error) for word in _OF_COLLECTIVES):
            group.wait_for_verdict()  # mostly, another process is gone
        traceback.print_exception(error)
        explained = FAULT, [f"stopped: {type(error).__name__}: {error}"]
    else:
        print("\n".join(explained[1]), file=sys.stderr)
    group.fail(*explained)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(explained[0])


_OF_COLLECTIVES = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Connection", "Socket")
"""Parts of the messages of collectives whose other half is gone."""


def finish() -> None:
    """Ends a run of several processes, when all have come to the end of the command."""
    if group.count > 1:
        group.finish()
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        jax.distributed.shutdown()


_HANDLERS = []  # ctypes does not keep them


def _explain_abort() -> None:
    """Replaces the core dump with one line when JAX aborts because a process is gone.

    A thread of JAX aborts in C++, at once, without Python's ``finally`` or handlers of `signal`.
    """

    def aborted(_number: int) -> None:
        group.leave(FAULT, [group.why_aborted()])

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    _HANDLERS.append(handler)
    with contextlib.suppress(AttributeError, OSError):  # not a POSIX system
        ctypes.CDLL(None).signal(signal.SIGABRT, handler)


@dataclasses.dataclass(frozen=True)
class AbsentSlice:
    """The devices of a TPU slice to compile for; the program cannot run here.

    Needs libtpu, which compiles on any machine.
    """

    devices: tuple[jax.Device, ...]

    @classmethod
    def named(cls, topology: str, **options: Any) -> AbsentSlice:
        """The slice with libtpu's name ``topology``; raises what libtpu raises if it has none."""
        from jax.experimental import topologies

        found = topologies.get_topology_desc(topology, "tpu", **options)
        return cls(tuple(found.devices))

    def compile(self, step: Callable, specs: str, results: str, arguments: tuple, **options: Any):
        """The program of one device of ``step``, as `Devices.train_step` would run it.

        ``specs`` and ``results`` have a word per argument and result: "all" (a copy on every
        device) or "part" (split along the first axis, ``[n, …]``). ``arguments`` are trees of
        shapes for all devices; ``options`` are `jax.jit`'s. Returns a `jax.stages.Compiled`.
        """
        mesh = Mesh(np.array(self.devices), (AXIS,))
        of = {"all": PartitionSpec(), "part": PartitionSpec(AXIS)}
        inputs, outputs = (tuple(of[word] for word in text.split()) for text in (specs, results))
        mapped = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=inputs,
            out_specs=outputs if len(outputs) > 1 else outputs[0],
            check_vma=False,
        )

        def placed(tree, spec):
            sharding = NamedSharding(mesh, spec)
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
            )

        shapes = map(placed, arguments, inputs)
        return jax.jit(mapped, **options).lower(*shapes).compile()
