"""The contents of a detection data set: features, records, and the index next to the shards."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from retina_jax.files import atomic_write

VERSION = "1.0.0"
READS_ALL_MARKS = 2
"""The first `Index.version` that marks difficult objects of other programs' data sets as crowds."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One image to be written. Boxes are xyxy in pixels, inside the image and with an area."""

    image_id: int
    file_name: str
    image: bytes
    """An encoded image (JPEG, PNG): 8 bits, grey or RGB, upright."""
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    """Positions in the class names."""
    is_crowd: np.ndarray
    areas: np.ndarray
    """Area of each object in pixels² (of its segmentation if there is one)."""
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Number of findings and fixes, by description."""


class IndexRow(NamedTuple):
    """The index entry of a row."""

    image_id: int
    height: int
    width: int
    file_name: str
    boxes: Sequence[Sequence[float]]
    """As stored: normalised yxyx."""
    labels: Sequence[int]
    is_crowd: Sequence[bool]
    areas: Sequence[float]
    image_hash: int = 0
    """`hash_of` the encoded image."""


@dataclasses.dataclass(frozen=True)
class Index:
    """Metadata of the rows of a split, available without reading them.

    The first four fields have one entry per row. The next four have one entry per box, in row
    order; they are None in an index from an earlier version.
    """

    image_ids: np.ndarray
    sizes: np.ndarray
    """``[rows, 2]``: height and width, pixels."""
    box_counts: np.ndarray
    file_names: np.ndarray
    """Name of the image file of each row; "" if unknown."""
    boxes: np.ndarray | None = None
    """``[boxes, 4]`` float32, as stored: normalised yxyx."""
    labels: np.ndarray | None = None
    is_crowd: np.ndarray | None = None
    areas: np.ndarray | None = None
    image_hashes: np.ndarray | None = None
    """``[rows]`` uint64: `hash_of` each encoded image; None in an index from an earlier version."""
    version: int = 0
    """Version of the code that wrote the index."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @functools.cached_property
    def first_box(self) -> np.ndarray:
        """``[rows + 1]``: the index of the first box of each row."""
        return np.concatenate([[0], np.cumsum(self.box_counts)])

    @classmethod
    def of(cls, rows: Iterable[IndexRow]) -> Index:
        rows = list(rows)

        def per_box(field: str, dtype: type, *shape: int) -> np.ndarray:
            parts = [np.asarray(getattr(row, field), dtype).reshape(-1, *shape) for row in rows]
            return np.concatenate([np.zeros((0, *shape), dtype), *parts])

        return cls(
            image_ids=np.array([row.image_id for row in rows], np.int64),
            sizes=np.array([(r.height, r.width) for r in rows], np.int32).reshape(-1, 2),
            box_counts=np.array([len(row.labels) for row in rows], np.int64),
            file_names=np.array([row.file_name for row in rows], str),
            boxes=per_box("boxes", np.float32, 4),
            labels=per_box("labels", np.int32),
            is_crowd=per_box("is_crowd", np.bool_),
            areas=per_box("areas", np.float64),
            image_hashes=np.array([row.image_hash for row in rows], np.uint64),
            version=READS_ALL_MARKS,
        )

    def fingerprints(self) -> dict[str, str]:
        """A digest of all annotations, and one of all images if the index knows them.

        Two splits with equal digests hold the same, regardless of where and by which version they
        were written.
        """
        annotations = hashlib.sha256()
        per_row = (self.image_ids, self.sizes, self.box_counts)
        per_box = (self.boxes, self.labels, self.is_crowd, self.areas)
        for values, dtype in zip(
            (*per_row, *per_box), ("<i8", "<i8", "<i8", "<f4", "<i8", "|b1", "<f4"), strict=True
        ):
            if values is not None:
                annotations.update(np.ascontiguousarray(values, dtype).tobytes())
        digests = {"annotations": annotations.hexdigest()[:16]}
        if self.image_hashes is not None:
            images = hashlib.sha256(np.ascontiguousarray(self.image_hashes, "<u8").tobytes())
            digests["images"] = images.hexdigest()[:16]
        return digests

    def with_unique_ids(self) -> Index:
        """Returns this index; uses row numbers as image ids if ids repeat."""
        if len(np.unique(self.image_ids)) == len(self):
            return self
        return dataclasses.replace(self, image_ids=np.arange(len(self)))

    def save(self, directory: Path, split: str) -> None:
        """Writes the index atomically."""
        with atomic_write(index_path(directory, split)) as temporary:
            there = {n: v for n, v in dataclasses.asdict(self).items() if v is not None}
            np.savez_compressed(temporary, **there)

    @classmethod
    def load(cls, directory: Path, split: str) -> Index | None:
        """Reads the index; returns None if there is no readable one."""
        try:
            with np.load(index_path(directory, split)) as arrays:
                index = cls(
                    **{
                        field.name: arrays[field.name]
                        for field in dataclasses.fields(cls)
                        if field.default is dataclasses.MISSING or field.name in arrays
                    }
                )
                index = dataclasses.replace(index, version=int(index.version))
        except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile):
            return None
        of_boxes = (index.boxes, index.labels, index.is_crowd, index.areas)
        total = int(index.box_counts.sum())
        if any(values is None or len(values) != total for values in of_boxes):
            return dataclasses.replace(index, boxes=None, labels=None, is_crowd=None, areas=None)
        return index


def index_path(directory: Path, split: str) -> Path:
    """Returns the path of the index of a split."""
    return directory / f"index_{split}.npz"


def data_set_directory(data_dir: Path, name: str) -> Path:
    return data_dir / name / VERSION


def features(class_names: Sequence[str]) -> tfds.features.FeaturesDict:
    """Returns the features of a record on disk, named as for COCO in the TFDS catalogue."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/id": np.int64,
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.Sequence(
                {
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(names=list(class_names)),
                    "is_crowd": np.bool_,
                    "area": np.float32,
                }
            ),
        }
    )


def hash_of(image: bytes) -> int:
    """64 bits of a digest of an encoded image."""
    return int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "little")


def index_row(record: Record) -> IndexRow:
    """Returns the index entry of a record."""
    return IndexRow(
        image_id=int(record.image_id),
        height=int(record.height),
        width=int(record.width),
        file_name=record.file_name,
        boxes=_normalised_yxyx(record).tolist(),
        labels=record.labels.tolist(),
        is_crowd=record.is_crowd.tolist(),
        areas=record.areas.astype(np.float32).tolist(),  # as they are stored
        image_hash=hash_of(record.image),
    )


def example_of(record: Record) -> dict:
    """Returns a record in the form that TFDS encodes."""
    row = index_row(record)
    objects = zip(row.boxes, row.labels, row.is_crowd, row.areas, strict=True)
    return {
        "image": record.image,
        "image/id": row.image_id,
        "image/filename": row.file_name,
        "objects": [
            {
                # TFDS accepts only Python floats
                "bbox": tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2),
                "label": label,
                "is_crowd": crowd,
                "area": area,
            }
            for (y1, x1, y2, x2), label, crowd, area in objects
        ],
    }


def _normalised_yxyx(record: Record) -> np.ndarray:
    """Returns boxes ``[n, 4]`` as TFDS stores them: normalised yxyx, float64."""
    sides = [record.width, record.height, record.width, record.height]
    return (record.boxes / sides)[:, [1, 0, 3, 2]]
