"""The only place that says pmap, device count and process.

State is replicated without a leading axis; a batch is split over its first. Both are put on the
devices before the call, which donation of an ``in_axes=None`` argument needs.
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

from retina_jax.errors import UserError

AXIS = "devices"
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
"""In the message of XLA's error."""
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
                f"config.{field}={size} must divide by {count} devices; set --config.{field}={fix}"
            )
        return size // jax.process_count()

    def replicate(self, tree: T) -> T:
        """A copy of ``tree`` on every device, without a leading axis."""
        return jax.device_put(tree, self._sharding())

    def shard(self, tree: T) -> T:
        """Host arrays ``[n, …]`` to ``[devices, n / devices, …]``, each part on its device."""

        def split(x):
            return np.reshape(x, (len(self), len(x) // len(self), *np.shape(x)[1:]))

        return jax.device_put(jax.tree.map(split, tree), self._sharding(AXIS))

    def train_step(self, step: Callable) -> Callable:
        """``(state, batch) -> (state, metrics)`` over the devices; the old state is given up."""
        return jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=None,
            donate_argnums=(0,),
            devices=self.devices,
        )

    def predict_step(self, step: Callable) -> Callable:
        """``(variables, images, sizes) -> [devices, n / devices, …]``; `fetch` joins them."""
        return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, 0), devices=self.devices)


@contextlib.contextmanager
def memory_named(advice: str) -> Iterator[None]:
    """A lack of device memory as `UserError` with ``advice``."""
    try:
        yield
    except Exception as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        raise UserError(f"out of device memory; {advice}") from error


def fetch(tree: Any) -> Any:
    """Device arrays to NumPy; waits for them."""
    return jax.tree.map(np.asarray, tree)


def join(tree: Any) -> Any:
    """NumPy ``[devices, n / devices, …]`` to ``[n, …]``: what `Devices.shard` undid."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *np.shape(x)[2:]), tree)


def process_index() -> int:
    return jax.process_index()


def process_count() -> int:
    return jax.process_count()


def ahead(items: Iterable[Any], put: Callable[[Any], T], depth: int = 2) -> Iterator[T]:
    """``put(item)`` for each item, ``depth`` of them under way before they are asked for."""
    queue: collections.deque[T] = collections.deque()
    for item in items:
        queue.append(put(item))
        if len(queue) > depth:
            yield queue.popleft()
    yield from queue
