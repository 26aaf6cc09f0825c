"""How the inputs' shapes fit a split: images, padding and scale of each bucket."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import ml_collections
import numpy as np

from retina_jax.config import resolve
from retina_jax.data.data_set import Split
from retina_jax.data.plan import Placements, padding_share, scale_of
from retina_jax.doctor.checks import Finding, percent

_MOST_PADDING = 0.35
_MOST_SCALE = 4.0


@dataclasses.dataclass(frozen=True)
class BucketRow:
    """Images that an input shape shows."""

    height: int
    width: int
    images: int
    padding: float | None
    """Share of its pixels that no picture covers."""
    least_scale: float | None
    """Input pixels for one of the original, of the image that is shrunk most."""
    largest_scale: float | None


def bucket_rows(split: Split, placed: Placements, config) -> tuple[BucketRow, ...]:
    """Images, padding and scale of each bucket, for a split placed as the loader does."""
    # the longer side tells the scale best: rounding moves it least
    longest = split.sizes.max(axis=1)
    scales = np.maximum(placed.height, placed.width) / longest
    found = []
    buckets = resolve(config).buckets
    for number, (height, width) in enumerate(buckets):
        members = np.flatnonzero(placed.bucket == number)
        if not len(members):
            found.append(BucketRow(height, width, 0, None, None, None))
            continue
        padding = padding_share(placed.of(members), buckets)
        low, high = float(scales[members].min()), float(scales[members].max())
        found.append(BucketRow(height, width, len(members), padding, low, high))
    return tuple(found)


def check_buckets(
    name: str, images: int, rows: Sequence[BucketRow], config: ml_collections.ConfigDict
) -> list[Finding]:
    """Inputs that are mostly padding, buckets of hardly any images, pictures shown far off size."""
    found = []
    for row in rows:
        where = f"{name}: bucket {row.height}×{row.width}"
        if not row.images:
            found.append(Finding("note", "buckets", f"{where} shows no image"))
            continue
        if row.images < config.train.batch_size and row.images < images:
            message = (
                f"{where} shows {row.images} of {images} images, fewer than "
                f"train.batch_size={config.train.batch_size}: one batch holds an image twice; "
                "leave it out of --config.data.buckets"
            )
            found.append(Finding("warning", "buckets", message))
        if row.padding > _MOST_PADDING:
            message = (
                f"{where} is {percent(row.padding)} padding over {row.images} images; set "
                "--config.data.buckets nearer to their shapes"
            )
            found.append(Finding("warning", "buckets", message))
        if row.least_scale < 1 / _MOST_SCALE:
            message = (
                f"{where} shows pictures shrunk up to {1 / row.least_scale:.3g} times; raise "
                f"--config.data.short_side={config.data.short_side} and its buckets, or cut them up"
            )
            found.append(Finding("warning", "buckets", message))
        if row.largest_scale > _MOST_SCALE:
            message = (
                f"{where} shows pictures enlarged up to {row.largest_scale:.3g} times; lower "
                f"--config.data.short_side={config.data.short_side} and its buckets"
            )
            found.append(Finding("warning", "buckets", message))
    return found


def check_shrinking(split: Split, config: ml_collections.ConfigDict) -> list[Finding]:
    """Buckets too small for the sides that images are asked to be scaled to; from the index."""
    data, buckets = config.data, resolve(config).buckets
    asked = max(data.short_side, *data.train_short_sides, 0)
    field = "short_side" if asked == data.short_side else "train_short_sides"
    sizes, counts = np.unique(split.sizes, axis=0, return_counts=True)
    smaller, worst = 0, 1.0
    for (height, width), count in zip(sizes.tolist(), counts.tolist(), strict=True):
        rule = min(asked / min(height, width), data.long_side / max(height, width))
        shown = max(scale_of(height, width, b, asked, data.long_side) for b in buckets)
        # a pixel: buckets are multiples of 32, and sides are rounded
        if rule * max(height, width) - shown * max(height, width) > 1:
            smaller += count
            worst = min(worst, shown / rule)
    if not smaller:
        return []
    message = (
        f"{split.name}: data.buckets={tuple(buckets)} shows {smaller} of {len(split)} images "
        f"smaller than data.{field}={data[field]} asks for, down to {percent(worst)} of it; set "
        "--config.data.buckets='()' to let the buckets follow"
    )
    return [Finding("warning", "buckets", message)]
