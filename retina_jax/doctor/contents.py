"""All boxes of a split as arrays, and hashes of its images; read once."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Int

from retina_jax.data.data_set import Example, Split
from retina_jax.doctor.picture_hash import PictureHash, hash_picture

_BLOCK = 512  # rows read at once


@dataclasses.dataclass(frozen=True)
class Contents:
    """Boxes of some or all rows of a split: xyxy, pixels of the original image, with crowds."""

    split: Split
    rows: Int[np.ndarray, "images"]
    """Rows that were read."""
    row_of: Int[np.ndarray, "n"]
    """Row of each box."""
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, "n"]
    is_crowd: Bool[np.ndarray, "n"]
    areas: Float[np.ndarray, "n"]
    """Annotated area of the object, pixels²."""
    pictures: list[PictureHash]
    """In the order of ``rows``; empty if images were not read."""
    unlabelled: Int[np.ndarray, "_"]
    """Rows with labels that are not a class; their boxes are not included."""

    def name(self, row: int) -> str:
        """An image, for messages: its id and, if known, its file name."""
        names = getattr(self.split, "file_names", None)
        file = str(names[row]) if names is not None and names[row] else ""
        return f"image {int(self.split.image_ids[row])}" + (f" ({file})" if file else "")

    def names(self, rows: np.ndarray, limit: int = 3) -> str:
        """The first images of ``rows``, for messages."""
        rows = list(dict.fromkeys(int(row) for row in rows))
        listed = ", ".join(self.name(row) for row in rows[:limit])
        return listed + (f" and {len(rows) - limit} more" if len(rows) > limit else "")

    @functools.cached_property
    def cut(self) -> Float[np.ndarray, "n 4"]:
        """Boxes clipped to their images."""
        return np.clip(self.boxes, 0, self.split.sizes[self.row_of][:, [1, 0, 1, 0]])

    @functools.cached_property
    def sound(self) -> Bool[np.ndarray, "n"]:
        """Boxes that training matches: finite, with area inside the image, not crowds."""
        with_area = (self.cut[:, 2:] > self.cut[:, :2]).all(axis=1)
        return np.isfinite(self.boxes).all(axis=1) & with_area & ~self.is_crowd


def spread_rows(split: Split, limit: int) -> Int[np.ndarray, "_"]:
    """At most ``limit`` rows, evenly spread over the split."""
    return np.unique(np.linspace(0, len(split) - 1, min(limit, len(split))).astype(np.int64))


def read_contents(
    split: Split,
    rows: Int[np.ndarray, "images"],
    pictures: bool = False,
    advance: Callable[[int], None] = lambda count: None,
    index_only: bool = False,
) -> Contents:
    """Reads ``rows`` and, with ``pictures``, hashes the images. ``advance`` counts rows read.

    ``index_only``: takes the annotations from the index, if it has them, not from the records.
    """

    def read(row: int) -> tuple[Example | None, PictureHash | None]:
        try:
            example = split.annotations(row) if index_only else split[row]
        except IndexError:  # data.labels=category_ids found no id for a label
            return None, None
        hashed = None
        if pictures:
            hashed = hash_picture(example.image, *(int(v) for v in split.sizes[row]))
        return dataclasses.replace(example, image=b""), hashed

    read_rows, examples, hashes, unlabelled = [], [], [], []
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        for start in range(0, len(rows), _BLOCK):
            block = [int(row) for row in rows[start : start + _BLOCK]]
            # without hashing, reading a record is faster than waking a thread
            for row, (example, hashed) in zip(
                block, threads.map(read, block) if pictures else map(read, block), strict=True
            ):
                if example is None:
                    unlabelled.append(row)
                    continue
                read_rows.append(row)
                examples.append(example)
                hashes.append(hashed)
            advance(len(block))
    counts = [len(example.boxes) for example in examples]

    def joined(field: str, dtype, *shape: int) -> np.ndarray:
        parts = [np.zeros((0, *shape), dtype), *(getattr(e, field) for e in examples)]
        return np.concatenate(parts).astype(dtype)

    return Contents(
        split=split,
        rows=np.array(read_rows, np.int64),
        row_of=np.repeat(np.array(read_rows, np.int64), counts),
        boxes=joined("boxes", np.float64, 4),
        labels=joined("labels", np.int64),
        is_crowd=joined("is_crowd", bool),
        areas=joined("areas", np.float64),
        pictures=hashes if pictures else [],
        unlabelled=np.array(unlabelled, np.int64),
    )
