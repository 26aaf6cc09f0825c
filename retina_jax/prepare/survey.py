"""A first pass over all images, before any record is written.

Detecting boxes in the wrong units requires the image sizes. The scale of 16-bit and float images
applies to the whole data set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from retina_jax.data.deep import PixelScale, smallest_scale
from retina_jax.errors import UserError

_READERS = max(4, 2 * (os.cpu_count() or 1))


def survey(
    splits: Mapping[str, Any],
    pixel_scale: PixelScale | None,
    advance: Callable[[int], None] = lambda rows: None,
) -> PixelScale | None:
    """Returns the scale of the 16-bit and float images; None if there are none.

    Args:
      splits: the rows of each split, as `AnnotationReader` or `CatalogueRows`.
      pixel_scale: the scale that the user chose, which is returned unchanged.

    Raises `UserError` for boxes in the wrong units, and for a mix of integer and floating-point
    images, which no default scale fits.
    """
    ranges: dict[str, tuple[float, float]] = {}
    examples: dict[str, str] = {}

    def seen(rows: Any, row: int):
        advance(1)
        return rows.look(row, pixel_scale is None)

    with ThreadPoolExecutor(_READERS) as threads:
        for rows in splits.values():
            looks = list(threads.map(lambda row, rows=rows: seen(rows, row), range(len(rows))))
            rows.check_units(looks)
            for row, look in enumerate(looks):
                if look and look.kind:
                    low, high = look.values or (0.0, 0.0)
                    least, most = ranges.get(look.kind, (low, high))
                    ranges[look.kind] = min(low, least), max(high, most)
                    examples.setdefault(look.kind, rows.name(row))
    if pixel_scale is not None or not ranges:
        return pixel_scale
    if len(ranges) > 1:
        held = " and ".join(
            f"{examples[kind]} has {kind} (all values: {low:g} to {high:g})"
            for kind, (low, high) in ranges.items()
        )
        raise UserError(
            f"{held}: no single scale to 8 bits fits both; convert the images to one kind, or set "
            "--pixel-range=LOW,HIGH for all of them"
        )
    ((kind, (low, high)),) = ranges.items()
    return smallest_scale(kind, low, high)
