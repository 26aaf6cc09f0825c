"""Packs scaled images into batches of fixed shapes as they arrive."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from retina_jax.data.plan import Placement
from retina_jax.types import Batch, GroundTruth

_PATIENCE = 4
"""A window waits for at most this many batches of later windows before its batch is padded."""


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """An image, or a tile of one, scaled for the network."""

    number: int
    """Place in the stream."""
    placement: Placement
    original: tuple[int, int]
    """Height and width before scaling, pixels."""
    pixels: np.ndarray
    """``[placement.height, placement.width, 3]``."""


def make_batches(
    windows: Iterable[Window], buckets: Sequence[tuple[int, int]], batch_size: int
) -> Iterator[Batch]:
    """Batches of ``batch_size`` windows of one bucket each; their numbers are in ``index``.

    A window waits until others fill its batch, but not until the end of the stream: otherwise, a
    portrait image among landscape ones would delay all later results. A batch that has waited too
    long, and every batch at the end, is padded with fillers.
    """
    waiting: dict[int, list[Window]] = {}
    for window in windows:
        batch = waiting.setdefault(window.placement.bucket, [])
        batch.append(window)
        if len(batch) == batch_size:
            yield _batch(waiting.pop(window.placement.bucket), buckets, batch_size)
        oldest = min(waiting, key=lambda bucket: waiting[bucket][0].number, default=None)
        if oldest is not None:
            age = window.number - waiting[oldest][0].number
            if age >= _PATIENCE * batch_size:
                yield _batch(waiting.pop(oldest), buckets, batch_size)
    for bucket in sorted(waiting):
        yield _batch(waiting[bucket], buckets, batch_size)


def _batch(windows: Sequence[Window], buckets: Sequence[tuple[int, int]], batch_size: int) -> Batch:
    shape = buckets[windows[0].placement.bucket]
    images = np.zeros((batch_size, *shape, 3), windows[0].pixels.dtype)
    sizes = np.tile(np.array(shape, np.int32), (batch_size, 1))
    originals, index = sizes.copy(), np.full(batch_size, -1, np.int32)
    for i, window in enumerate(windows):
        height, width = sizes[i] = window.placement.height, window.placement.width
        images[i, :height, :width] = window.pixels
        originals[i], index[i] = window.original, window.number
    return Batch(
        images=images,
        sizes=sizes,
        original_sizes=originals,
        ground_truth=GroundTruth.empty(batch_size, 0),
        index=index,
        example_mask=np.arange(batch_size) < len(windows),
        cut_away=np.zeros(batch_size, np.int32),
    )
