"""How well the buckets fit a split: images, padding and scale of each bucket."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import ml_collections
import numpy as np

from retina_jax.config import resolve
from retina_jax.data.data_set import Split
from retina_jax.data.plan import Placements, padding_share, scale_of
from retina_jax.doctor.checks import Finding, percent
from retina_jax.wording import counted

_MOST_PADDING = 0.35
_MOST_SCALE = 4.0


@dataclasses.dataclass(frozen=True)
class BucketRow:
    """Statistics of one bucket."""

    height: int
    width: int
    images: int
    padding: float | None
    """Share of pixels that are padding."""
    least_scale: float | None
    """Smallest scale factor from original to input pixels."""
    largest_scale: float | None
    """Largest scale factor from original to input pixels."""


def bucket_rows(split: Split, placed: Placements, config) -> tuple[BucketRow, ...]:
    """Images, padding and scale of each bucket; ``placed`` is the loader's placement."""
    # the longer side gives the most accurate scale: rounding affects it least
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
    """Finds buckets with much padding, with few images, or with extreme scale factors."""
    found = []
    for row in rows:
        where = f"{name}: bucket {row.height}×{row.width}"
        if not row.images:
            found.append(Finding("note", "buckets", f"{where} receives no images"))
            continue
        if row.images < config.train.batch_size and row.images < images:
            message = (
                f"{where} receives {row.images} of {images} images, fewer than "
                f"train.batch_size={config.train.batch_size}, so images repeat within a batch; "
                "remove it from --config.data.buckets"
            )
            found.append(Finding("warning", "buckets", message))
        if row.padding > _MOST_PADDING:
            message = (
                f"{where} is {percent(row.padding)} padding over {counted(row.images, 'image')}; "
                "set --config.data.buckets closer to the shapes of the images"
            )
            found.append(Finding("warning", "buckets", message))
        if row.least_scale < 1 / _MOST_SCALE:
            message = (
                f"{where} shrinks images by up to {1 / row.least_scale:.3g}×; raise "
                f"--config.data.short_side (now {config.data.short_side}) and, if set, "
                "--config.data.buckets, or tile the images"
            )
            found.append(Finding("warning", "buckets", message))
        if row.largest_scale > _MOST_SCALE:
            message = (
                f"{where} enlarges images by up to {row.largest_scale:.3g}×; lower "
                f"--config.data.short_side (now {config.data.short_side}) and, if set, "
                "--config.data.buckets"
            )
            found.append(Finding("warning", "buckets", message))
    return found


def check_shrinking(split: Split, config: ml_collections.ConfigDict) -> list[Finding]:
    """Finds buckets that are too small for the configured sides; uses only the index."""
    data, buckets = config.data, resolve(config).buckets
    asked = max(data.short_side, *data.train_short_sides, 0)
    field = "short_side" if asked == data.short_side else "train_short_sides"
    sizes, counts = np.unique(split.sizes, axis=0, return_counts=True)
    smaller, worst = 0, 1.0
    for (height, width), count in zip(sizes.tolist(), counts.tolist(), strict=True):
        rule = min(asked / min(height, width), data.long_side / max(height, width))
        shown = max(scale_of(height, width, b, asked, data.long_side) for b in buckets)
        # allow one pixel, because sides are rounded
        if rule * max(height, width) - shown * max(height, width) > 1:
            smaller += count
            worst = min(worst, shown / rule)
    if not smaller:
        return []
    message = (
        f"{split.name}: data.buckets={tuple(buckets)} scales {smaller} of {len(split)} images "
        f"smaller than data.{field}={data[field]} requires, down to {percent(worst)}; set "
        "--config.data.buckets='()' to derive the buckets from the sides"
    )
    return [Finding("warning", "buckets", message)]
