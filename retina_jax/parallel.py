"""The only module that knows about pmap, device counts and processes.

State is replicated without a leading axis; a batch is split along its first axis. Both are placed
on the devices before the call, because donating an ``in_axes=None`` argument requires it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from retina_jax.errors import UserError, is_out_of_device_memory

AXIS = "devices"
T = TypeVar("T")


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

    def _sharding(self, *spec: str) -> NamedSharding:
        return NamedSharding(Mesh(np.array(self.devices), (AXIS,)), PartitionSpec(*spec))

    def check_batch(self, size: int, field: str) -> int:
        """This host's share of a global batch; `UserError` if the devices cannot share it."""
        count = self.global_count
        if size % count:
            fix = max(1, round(size / count)) * count
            raise UserError(
                f"config.{field}={size} must be a multiple of the {count} devices; "
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

    def train_step(self, step: Callable) -> Callable:
        """``(state, batch) -> (state, metrics)`` over the devices; donates the old state."""
        return jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=None,
            donate_argnums=(0,),
            devices=self.devices,
        )

    def predict_step(self, step: Callable) -> Callable:
        """``(variables, images, sizes) -> [devices, n / devices, …]`` over the devices."""
        return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, 0), devices=self.devices)


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
    return jax.process_index()


def process_count() -> int:
    return jax.process_count()


def prefetch(items: Iterable[Any], put: Callable[[Any], T], depth: int = 2) -> Iterator[T]:
    """Yields ``put(item)`` for each item and prefetches ``depth`` items."""
    queue: collections.deque[T] = collections.deque()
    for item in items:
        queue.append(put(item))
        if len(queue) > depth:
            yield queue.popleft()
    yield from queue


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
