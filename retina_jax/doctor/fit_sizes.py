"""Chooses image sides and buckets for the shapes of a data set's images and a budget of pixels.

How large an image can be shown in a bucket depends only on its aspect ratio, so the search counts
images by aspect ratio. Every decision compares rounded numbers: all hosts choose the same.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int

from retina_jax.data.plan import Placements, place_all

MOST_BUCKETS = 3
"""The steps are compiled once per bucket."""
MOST_ENLARGED = 2.0
"""Unless 1 image of 10 stays below this factor, images are shown smaller than the budget allows:
enlarging adds no detail, and twice the side already gives a small object four times the cells."""
_GAIN = 0.03
"""Share of pixels that a further bucket must add to the images."""
_LEAST_SHARE = 0.05
"""Share of the images below which a bucket is not worth its compilation."""
_COVERED = 0.98
"""Share of a bucket's images for which its sides must be large enough; it shrinks the others."""
_LARGE = 0.9
_STEP = 32  # pixels: the stride of C5
_BINS = 16  # bins of aspect ratios per factor of two
_NO_LIMIT = 1 << 24  # pixels


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Values of ``data.short_side``, ``data.long_side`` and ``data.buckets``."""

    short_side: int
    long_side: int
    buckets: tuple[tuple[int, int], ...]


def fit_sizes(
    sizes: Int[np.ndarray, "n 2"],
    budget: int,
    least: int = 1,
    short_side: int = 0,
    long_side: int = 0,
    buckets: tuple[tuple[int, int], ...] = (),
    turned: bool = False,
) -> Sizes:
    """Sides and buckets that show images as large as the budget allows, with little padding.

    Chooses at most `MOST_BUCKETS` buckets, multiples of 32 pixels with at most ``budget`` pixels
    each, that maximise the mean share of the budget that images cover. A further bucket must add
    3 % to it and serve 5 % of the images. A bucket then shrinks to the sides that 98 % of its
    images need. The result does not depend on the order of the images.

    Args:
      sizes: height and width of each image, pixels; at least one image.
      budget: largest number of pixels of a bucket, 1,024 or more.
      least: smallest number of images of a bucket, if there are several.
      short_side, long_side, buckets: values to keep; 0 or empty: to be chosen. If the short side
        is kept, the buckets follow from it instead of the budget.
      turned: images also appear turned by 90°.
    """
    shapes, counts = np.unique(np.asarray(sizes, np.int64), axis=0, return_counts=True)
    if turned:
        both = np.concatenate([shapes, shapes[:, ::-1]])
        shapes, inverse = np.unique(both, axis=0, return_inverse=True)
        counts = np.bincount(inverse.reshape(-1), np.tile(counts, 2)).astype(np.int64)
    short, long = short_side or _NO_LIMIT, long_side or _NO_LIMIT
    if not buckets:
        largest = short_side or int(MOST_ENLARGED * _quantile(shapes.min(axis=1), counts, _LARGE))
        if short_side:
            budget = _needed(shapes, counts, short, long)
        least = max(least, math.ceil(_LEAST_SHARE * counts.sum()))
        chosen = _choose(shapes, counts, budget, largest, long, least)
        shrunk = _shrunk(shapes, counts, chosen, largest, long)
        buckets = _used(shapes, counts, shrunk, short, long, least)
    shown = place_all(shapes, buckets, short, long)
    sides = _sides(shapes, shown, buckets, short, long)
    return Sizes(short_side or sides[0], max(long_side or sides[1], short_side), buckets)


def up(side: float) -> int:
    """``side`` rounded up to a multiple of 32 pixels."""
    return max(1, math.ceil(round(side / _STEP, 6))) * _STEP


def _quantile(values: np.ndarray, counts: np.ndarray, share: float) -> int:
    """The smallest of ``values`` that is not below a ``share`` of all, each counted ``counts``."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(counts[order])
    return int(values[order][np.searchsorted(below, math.ceil(round(share * below[-1], 6)))])


def _needed(shapes: np.ndarray, counts: np.ndarray, short: int, long: int) -> int:
    """Pixels of a bucket that shows images at the given sides, for all but 2 % of them."""
    low, high = shapes.min(axis=1), shapes.max(axis=1)
    scale = np.minimum(short / low, long / high)
    areas = [up(s * a) * up(s * b) for s, a, b in zip(scale, low, high, strict=True)]
    return _quantile(np.array(areas), counts, _COVERED)


def _choose(
    shapes: np.ndarray, counts: np.ndarray, budget: int, short: int, long: int, least: int
) -> tuple[tuple[int, int], ...]:
    """The buckets within the budget that show images best; may be larger than necessary."""
    bins = np.round(_BINS * np.log2(shapes[:, 0] / shapes[:, 1])).astype(np.int64)
    bins, inverse = np.unique(bins, return_inverse=True)
    images = np.bincount(inverse.reshape(-1), counts)
    root = 2.0 ** (bins / (2 * _BINS))  # of an image with an area of 1: its height is the root
    candidates = _frontier(budget)
    rows, columns = np.array(candidates, np.float64).T[:, :, None]
    limit = np.minimum(short / np.minimum(root, 1 / root), long / np.maximum(root, 1 / root))
    scale = np.minimum(np.minimum(rows / root, columns * root), limit)
    best = np.minimum(np.sqrt(budget), limit)
    shown = np.round((scale / best) ** 2, 6)  # share of the pixels that an image can have at best
    chosen: list[int] = []
    value = 0.0
    while len(chosen) < MOST_BUCKETS:
        more, better = _improved([*chosen, None], shown, images, least)
        if chosen and better < value + _GAIN:
            break
        chosen, value = more, better
    return tuple(candidates[i] for i in chosen)


def _frontier(budget: int) -> list[tuple[int, int]]:
    """The buckets of at most ``budget`` pixels for which neither side could be larger."""
    units = max(1, budget // _STEP**2)
    pairs = [(high, units // high) for high in range(1, units + 1)]
    kept = [p for p, after in zip(pairs, [*pairs[1:], (0, 0)], strict=True) if p[1] > after[1]]
    return [(high * _STEP, wide * _STEP) for high, wide in kept]


def _improved(
    chosen: list[int | None],
    shown: Float[np.ndarray, "candidates bins"],
    images: Float[np.ndarray, "bins"],
    least: int,
) -> tuple[list[int], float]:
    """Fills the place that is None, then replaces one bucket after the other while that helps."""
    value, place, unchanged = -1.0, len(chosen) - 1, 0
    while unchanged < len(chosen):
        others = [i for n, i in enumerate(chosen) if n != place]
        values = _values(others, shown, images, least)
        top = int(values.argmax())
        if values[top] > value:
            chosen = [*others[:place], top, *others[place:]]
            value, unchanged = float(values[top]), 0
        unchanged += 1
        place = (place + 1) % len(chosen)
        if None in chosen:  # no candidate may be added
            return [i for i in chosen if i is not None], -1.0
    return chosen, value


def _values(
    others: list[int], shown: np.ndarray, images: np.ndarray, least: int
) -> Float[np.ndarray, "candidates"]:
    """Mean share that images cover with each candidate beside ``others``.

    -1 where a bucket would serve fewer than ``least`` images.
    """
    before = shown[others].max(axis=0, initial=0.0)
    values = np.round(np.maximum(shown, before) @ images / images.sum(), 6)
    if others:
        takes = shown > before
        few = takes @ images < least
        owner = shown[others].argmax(axis=0)
        for number in range(len(others)):
            few |= (~takes & (owner == number)) @ images < least
        values[few] = -1.0
    return values


def _shrunk(
    shapes: np.ndarray, counts: np.ndarray, buckets: tuple, short: int, long: int
) -> tuple[tuple[int, int], ...]:
    """Each bucket with the sides that 98 % of its images need."""
    placed = place_all(shapes, buckets, short, long)
    found = []
    for number in range(len(buckets)):
        mine = placed.bucket == number
        if mine.any():
            sides = (placed.height[mine], placed.width[mine])
            found.append(tuple(up(_quantile(side, counts[mine], _COVERED)) for side in sides))
    return tuple(dict.fromkeys(found))


def _used(
    shapes: np.ndarray, counts: np.ndarray, buckets: tuple, short: int, long: int, least: int
) -> tuple[tuple[int, int], ...]:
    """Without the buckets that serve too few images, smallest first."""
    buckets = tuple(sorted(buckets, key=lambda bucket: (bucket[0] * bucket[1], bucket)))
    while len(buckets) > 1:
        placed = place_all(shapes, buckets, short, long)
        images = np.bincount(placed.bucket, counts, len(buckets))
        fewest = int(images.argmin())
        if images[fewest] >= least:
            break
        buckets = buckets[:fewest] + buckets[fewest + 1 :]
    return buckets


def _sides(
    shapes: np.ndarray, placed: Placements, buckets: tuple, short: int, long: int
) -> tuple[int, int]:
    """The largest short and long side of an image in its bucket, pixels, rounded up."""
    low, high = shapes.min(axis=1), shapes.max(axis=1)
    room = np.array(buckets)[placed.bucket] / shapes
    scale = np.minimum(np.minimum(short / low, long / high), room.min(axis=1))
    return tuple(math.ceil(round(float((scale * side).max()), 6)) for side in (low, high))
