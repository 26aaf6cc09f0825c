"""All boxes of a split as arrays, and what its pictures are known by: read once."""

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

_BLOCK = 512  # rows under way at once


@dataclasses.dataclass(frozen=True)
class Contents:
    """Boxes of some or all rows of a split: xyxy, pixels of the original, crowds included."""

    split: Split
    rows: Int[np.ndarray, "images"]
    """That were read."""
    row_of: Int[np.ndarray, "n"]
    """Row of each box."""
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, "n"]
    is_crowd: Bool[np.ndarray, "n"]
    areas: Float[np.ndarray, "n"]
    """Pixels² of the object, as annotated."""
    pictures: list[PictureHash]
    """By place in ``rows``; empty where pictures were not looked at."""
    unlabelled: Int[np.ndarray, "_"]
    """Rows whose labels name no class at all; their boxes are not here."""

    def name(self, row: int) -> str:
        """An image, for messages: its id, and its file where that is known."""
        names = getattr(self.split, "file_names", None)
        file = str(names[row]) if names is not None and names[row] else ""
        return f"image {int(self.split.image_ids[row])}" + (f" ({file})" if file else "")

    def names(self, rows: np.ndarray, most: int = 3) -> str:
        """Some images, for messages."""
        rows = list(dict.fromkeys(int(row) for row in rows))
        listed = ", ".join(self.name(row) for row in rows[:most])
        return listed + (f" and {len(rows) - most} more" if len(rows) > most else "")

    @functools.cached_property
    def cut(self) -> Float[np.ndarray, "n 4"]:
        """Boxes cut to their pictures."""
        return np.clip(self.boxes, 0, self.split.sizes[self.row_of][:, [1, 0, 1, 0]])

    @functools.cached_property
    def sound(self) -> Bool[np.ndarray, "n"]:
        """Boxes that training matches: finite, with area inside their picture, no crowds."""
        with_area = (self.cut[:, 2:] > self.cut[:, :2]).all(axis=1)
        return np.isfinite(self.boxes).all(axis=1) & with_area & ~self.is_crowd


def spread_rows(split: Split, limit: int) -> Int[np.ndarray, "_"]:
    """At most ``limit`` rows, evenly over the split."""
    return np.unique(np.linspace(0, len(split) - 1, min(limit, len(split))).astype(np.int64))


def read_contents(
    split: Split,
    rows: Int[np.ndarray, "images"],
    pictures: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> Contents:
    """Reads ``rows``; ``pictures``: and hashes them, in threads. ``advance`` counts rows done."""

    def read(row: int) -> tuple[Example | None, PictureHash | None]:
        try:
            example = split[row]
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
            # a record without its picture is read faster than a thread is woken
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
