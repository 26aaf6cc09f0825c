"""Assigns images to batches: pure functions with the same result on every host.

An image goes to the bucket in which it is largest. Each bucket is an endless stream of images,
reshuffled every epoch and cut into batches. Images left at the end of an epoch start the next
batch, so nothing is dropped or padded. After e epochs a bucket of n images has produced
``e · n // batch`` batches, so any step can be computed directly and resuming needs no state.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Placement:
    """The bucket of an image and its scaled size; the image is at the top left of the input."""

    bucket: int
    height: int
    width: int


def scale_of(
    height: int, width: int, bucket: tuple[int, int], short_side: int, long_side: int
) -> float:
    """Scale factor of an image of ``height`` × ``width`` pixels in a bucket.

    The short side becomes ``short_side``, or less so that the long side does not exceed
    ``long_side`` (Detectron2) and the image fits the bucket.
    """
    rule = min(short_side / min(height, width), long_side / max(height, width))
    return min(rule, bucket[0] / height, bucket[1] / width)


def scaled_size(
    height: int, width: int, scale: float, rounding: str = "nearest"
) -> tuple[int, int]:
    """Height and width of the scaled image, at least one pixel each.

    Sides are rounded to the nearest pixel (halves up: Detectron2) or down ("floor": torchvision,
    bit for bit: 0.7 of 360 pixels is 251).
    """
    up = 0.5 if rounding == "nearest" else 0.0
    return max(1, int(height * scale + up)), max(1, int(width * scale + up))


def place(
    height: int,
    width: int,
    buckets: Sequence[tuple[int, int]],
    short_side: int,
    long_side: int,
    rounding: str = "nearest",
) -> Placement:
    """Bucket and scaled size, pixels, of an image.

    Chooses the bucket with the largest `scale_of`; among ties, the smallest bucket.
    """
    scales = [scale_of(height, width, bucket, short_side, long_side) for bucket in buckets]
    areas = [rows * columns for rows, columns in buckets]
    best = min(range(len(buckets)), key=lambda b: (-round(scales[b], 9), areas[b], b))
    rows, columns = buckets[best]
    shown = scaled_size(height, width, scales[best], rounding)
    return Placement(best, min(rows, shown[0]), min(columns, shown[1]))


@dataclasses.dataclass(frozen=True)
class Placements(Sequence[Placement]):
    """The `Placement` of every row of a split, as arrays."""

    bucket: np.ndarray
    height: np.ndarray
    width: np.ndarray

    def __len__(self) -> int:
        return len(self.bucket)

    def __getitem__(self, row: int) -> Placement:
        return Placement(int(self.bucket[row]), int(self.height[row]), int(self.width[row]))

    def of(self, rows: np.ndarray) -> Placements:
        """The placements of some rows, by index or mask."""
        return Placements(self.bucket[rows], self.height[rows], self.width[rows])


def place_all(
    sizes: np.ndarray,
    buckets: Sequence[tuple[int, int]],
    short_side: int,
    long_side: int,
    rounding: str = "nearest",
) -> Placements:
    """Vectorised `place` for ``sizes [rows, 2]`` (height, width)."""
    height, width = np.asarray(sizes, np.int64).reshape(-1, 2).T
    rule = np.minimum(short_side / np.minimum(height, width), long_side / np.maximum(height, width))
    scales = np.stack([np.minimum(rule, np.minimum(r / height, c / width)) for r, c in buckets])
    largest = scales.max(axis=0)
    smallest_first = sorted(range(len(buckets)), key=lambda b: (buckets[b][0] * buckets[b][1], b))
    bucket = np.array(smallest_first)[(scales == largest)[smallest_first].argmax(axis=0)]
    # place() rounds scales to nine digits before it compares them
    close = ((scales < largest) & (scales > largest - 2e-9)).any(axis=0)
    for row in np.flatnonzero(close):
        size = int(height[row]), int(width[row])
        bucket[row] = place(*size, buckets, short_side, long_side, rounding).bucket
    scale = scales[bucket, np.arange(len(bucket))]
    up = 0.5 if rounding == "nearest" else 0.0
    limits = np.array(buckets)[bucket]
    shown = [
        np.minimum(limit, np.maximum(1, (side * scale + up).astype(np.int64)))
        for side, limit in zip((height, width), limits.T, strict=True)
    ]
    return Placements(bucket, *shown)


@dataclasses.dataclass(frozen=True)
class Draw:
    """One element of a batch: a row of the split, and its epoch."""

    row: int
    epoch: int


class TrainPlan:
    """``batch_at(step)``: bucket and rows of any step, from the rows' buckets and a seed."""

    def __init__(self, bucket_of: np.ndarray, seed: int, batch_size: int):
        """``bucket_of [rows]``: bucket of each row, -1 for excluded rows.

        ``batch_size``: images over all hosts.
        """
        self._arguments = (bucket_of, seed, batch_size)
        self._members = [np.flatnonzero(bucket_of == b) for b in range(int(bucket_of.max()) + 1)]
        self._seed = seed
        self._batch_size = batch_size
        self._order = functools.lru_cache(maxsize=4 * len(self._members) + 64)(self._shuffled)
        self._schedule = functools.lru_cache(maxsize=4)(self._epoch_schedule)

    def __reduce__(self):
        return TrainPlan, self._arguments  # does not pickle the caches

    def _batches_before(self, epoch: int) -> list[int]:
        """Number of batches of each bucket before an epoch."""
        return [epoch * len(m) // self._batch_size for m in self._members]

    def _shuffled(self, bucket: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, 1, bucket, epoch))
        return rng.permutation(self._members[bucket])

    def _epoch_schedule(self, epoch: int) -> list[tuple[int, int]]:
        """(bucket, batch of that bucket) for each step of an epoch, shuffled."""
        first, last = self._batches_before(epoch), self._batches_before(epoch + 1)
        steps = [(b, k) for b in range(len(first)) for k in range(first[b], last[b])]
        order = np.random.default_rng((self._seed, 0, epoch)).permutation(len(steps))
        return [steps[i] for i in order]

    def epoch_of(self, step: int) -> int:
        """The epoch of a step, from 0."""
        total = sum(len(m) for m in self._members)
        # batches before epoch e differ from e · total / batch by less than one per bucket
        epoch = max(0, step * self._batch_size // total - len(self._members) - 1)
        while sum(self._batches_before(epoch + 1)) <= step:
            epoch += 1
        return epoch

    def bucket_at(self, step: int) -> int:
        """Bucket of a step, from 0."""
        epoch = self.epoch_of(step)
        return self._schedule(epoch)[step - sum(self._batches_before(epoch))][0]

    def batch_at(self, step: int) -> tuple[int, list[Draw]]:
        """Bucket and draws of a step, from 0; O(1) in ``step``."""
        epoch = self.epoch_of(step)
        bucket, batch = self._schedule(epoch)[step - sum(self._batches_before(epoch))]
        size = len(self._members[bucket])
        draws = []
        for position in range(batch * self._batch_size, (batch + 1) * self._batch_size):
            turn, place_in_turn = divmod(position, size)
            draws.append(Draw(int(self._order(bucket, turn)[place_in_turn]), turn))
        return bucket, draws


def evaluation_batches(
    bucket_of: np.ndarray, batch_size: int
) -> list[tuple[int, list[int | None]]]:
    """(bucket, rows) of batches with every row exactly once; None pads a bucket's last batch."""
    batches = []
    for bucket in range(int(bucket_of.max()) + 1):
        rows: list[int | None] = np.flatnonzero(bucket_of == bucket).tolist()
        rows += [None] * (-len(rows) % batch_size)
        for start in range(0, len(rows), batch_size):
            batches.append((bucket, rows[start : start + batch_size]))
    return batches


def padding_share(placements: Placements, buckets: Sequence[tuple[int, int]]) -> float:
    """Share of input pixels that are padding, over one epoch."""
    areas = np.array([rows * columns for rows, columns in buckets])
    shown = int((placements.height * placements.width).sum())
    return 1 - shown / int(areas[placements.bucket].sum())
