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

    def check_batch(self, size: int, field: str, micro_batches: int = 1) -> int:
        """This host's share of a global batch; `UserError` if the devices cannot share it.

        Each device processes its share in ``micro_batches`` (``train.accumulate``) equal parts.
        """
        count = self.global_count * micro_batches
        if size % count:
            fix = max(1, round(size / count)) * count
            parts = f"{self.global_count} devices"
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
