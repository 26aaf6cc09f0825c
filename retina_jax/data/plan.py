"""Assigns images to batches: pure functions with the same result on every host.

An image goes to the bucket in which it is largest. Each bucket is an endless stream of images,
reshuffled every epoch and cut into batches. Images left at the end of an epoch start the next
batch, so nothing is dropped or padded. After e epochs a bucket of n images has produced
``e · n // batch`` batches, so any step can be computed directly and resuming needs no state.

An image may be shown r ≥ 1 times per epoch on average: ⌊(e + 1) · r + u⌋ - ⌊e · r + u⌋ times in
epoch e, with u drawn once per image from 0 ≤ u < 1. The number of images before any epoch is then
still a formula. The mean is that of rounding r at random in every epoch (Detectron2), with less
variance: the counts of an image differ by at most one between epochs.
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
    """One element of a batch: a row of the split, and how often it was drawn before."""

    row: int
    occurrence: int
    """The epoch, unless images are repeated within one."""


_BITS = 16
"""Repeats are counted in units of 2^-16, in integers: exact, so the same on every host."""


class TrainPlan:
    """``batch_at(step)``: bucket and rows of any step, from the rows' buckets and a seed."""

    def __init__(
        self,
        bucket_of: np.ndarray,
        seed: int,
        batch_size: int,
        repeats: np.ndarray | None = None,
    ):
        """``bucket_of [rows]``: bucket of each row, -1 for excluded rows.

        ``batch_size``: images over all hosts. ``repeats [rows]``: how often each row is shown per
        epoch on average, 1 or more; None: once.
        """
        self._arguments = (bucket_of, seed, batch_size, repeats)
        self._members = [np.flatnonzero(bucket_of == b) for b in range(int(bucket_of.max()) + 1)]
        self._seed = seed
        self._batch_size = batch_size
        self._sizes = [len(m) for m in self._members]
        self._rates = self._offsets = None
        self._total = sum(self._sizes) << _BITS
        if repeats is not None:
            rates = np.rint(np.asarray(repeats) * (1 << _BITS)).astype(np.int64)
            offsets = np.random.default_rng((seed, 3)).integers(0, 1 << _BITS, len(bucket_of))
            self._rates = [rates[m] for m in self._members]
            self._offsets = [offsets[m] for m in self._members]
            self._total = sum(int(rates.sum()) for rates in self._rates)
        self._order = functools.lru_cache(maxsize=4 * len(self._members) + 64)(self._shuffled)
        self._schedule = functools.lru_cache(maxsize=4)(self._epoch_schedule)
        self._before = functools.lru_cache(maxsize=256)(self._draws_before)

    def __reduce__(self):
        return TrainPlan, self._arguments  # does not pickle the caches

    def _shown_before(self, bucket: int, epoch: int) -> np.ndarray:
        """How often each row of a bucket is shown before an epoch."""
        return (epoch * self._rates[bucket] + self._offsets[bucket]) >> _BITS

    def _draws_before(self, epoch: int) -> list[int]:
        """Number of draws of each bucket before an epoch."""
        if self._rates is None:
            return [epoch * size for size in self._sizes]
        return [int(self._shown_before(b, epoch).sum()) for b in range(len(self._members))]

    def _batches_before(self, epoch: int) -> list[int]:
        """Number of batches of each bucket before an epoch."""
        return [draws // self._batch_size for draws in self._before(epoch)]

    def _shuffled(self, bucket: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Row and occurrence of each draw of a bucket in an epoch."""
        rng = np.random.default_rng((self._seed, 1, bucket, epoch))
        members = self._members[bucket]
        if self._rates is None:
            return rng.permutation(members), np.broadcast_to(np.int64(epoch), members.shape)
        before = self._shown_before(bucket, epoch)
        counts = self._shown_before(bucket, epoch + 1) - before
        rows = np.repeat(members, counts)
        first = np.cumsum(counts) - counts
        occurrences = np.repeat(before - first, counts) + np.arange(len(rows))
        order = rng.permutation(len(rows))
        return rows[order], occurrences[order]

    def _epoch_schedule(self, epoch: int) -> list[tuple[int, int]]:
        """(bucket, batch of that bucket) for each step of an epoch, shuffled."""
        first, last = self._batches_before(epoch), self._batches_before(epoch + 1)
        steps = [(b, k) for b in range(len(first)) for k in range(first[b], last[b])]
        order = np.random.default_rng((self._seed, 0, epoch)).permutation(len(steps))
        return [steps[i] for i in order]

    def epoch_of(self, step: int) -> int:
        """The epoch of a step, from 0."""
        # batches before epoch e differ from e · total / batch by less than one per bucket, and
        # draws by less than one per row, of which every epoch has at least one
        epoch = (step * self._batch_size << _BITS) // self._total - len(self._members) - 1
        epoch = max(0, epoch)
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
        first = batch * self._batch_size
        while self._before(epoch)[bucket] > first:  # images left from earlier epochs
            epoch -= 1
        draws: list[Draw] = []
        while missing := self._batch_size - len(draws):
            rows, occurrences = self._order(bucket, epoch)
            begin = first + len(draws) - self._before(epoch)[bucket]
            part = slice(begin, begin + missing)
            draws += map(Draw, rows[part].tolist(), occurrences[part].tolist())
            epoch += 1
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
