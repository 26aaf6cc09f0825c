"""What stands in a detection data set: its features, a record, and the index beside the shards."""

from __future__ import annotations

import collections
import dataclasses
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from retina_jax.files import atomic_write

VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True)
class Record:
    """One image as it is written. Boxes xyxy in its own pixels, inside it and with area."""

    image_id: int
    file_name: str
    image: bytes
    """An encoded picture (JPEG, PNG): 8 bits, grey or RGB, upright."""
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    """Positions in the class names."""
    is_crowd: np.ndarray
    areas: np.ndarray
    """Pixels² of each object (of its segmentation where there is one)."""
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """What was found and mended on the way, by its description."""


@dataclasses.dataclass(frozen=True)
class Index:
    """What is known of a split's rows without reading them; each field has a row's entry."""

    image_ids: np.ndarray
    sizes: np.ndarray
    """``[rows, 2]``: height and width, pixels."""
    box_counts: np.ndarray
    file_names: np.ndarray
    """Of the picture that a row was made from; "" where it is not known."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int, int, int, str]]) -> Index:
        """From (image id, height, width, boxes, file name)."""
        rows = list(rows)
        numbers = np.array([row[:4] for row in rows], np.int64).reshape(-1, 4)
        names = np.array([row[4] for row in rows], str)
        return cls(numbers[:, 0], numbers[:, 1:3].astype(np.int32), numbers[:, 3], names)

    def save(self, directory: Path, split: str) -> None:
        """Whole or not at all."""
        with atomic_write(index_path(directory, split)) as temporary:
            np.savez_compressed(temporary, **dataclasses.asdict(self))

    @classmethod
    def load(cls, directory: Path, split: str) -> Index | None:
        """None where there is none that can be read."""
        try:
            with np.load(index_path(directory, split)) as arrays:
                return cls(**{field.name: arrays[field.name] for field in dataclasses.fields(cls)})
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None


def index_path(directory: Path, split: str) -> Path:
    """Where the sizes, names and box counts of a split's images are kept."""
    return directory / f"index_{split}.npz"


def data_set_directory(data_dir: Path, name: str) -> Path:
    return data_dir / name / VERSION


def features(class_names: Sequence[str]) -> tfds.features.FeaturesDict:
    """Of a record on disk; the names are COCO's in the TFDS catalogue."""
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


def example_of(record: Record) -> dict:
    """A record as TFDS encodes it: boxes yxyx, over the picture's sides."""
    normalised = record.boxes / [record.width, record.height, record.width, record.height]
    return {
        "image": record.image,
        "image/id": record.image_id,
        "image/filename": record.file_name,
        "objects": [
            {
                # TFDS takes Python floats alone
                "bbox": tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2),
                "label": int(label),
                "is_crowd": bool(crowd),
                "area": float(area),
            }
            for (x1, y1, x2, y2), label, crowd, area in zip(
                normalised.tolist(), record.labels, record.is_crowd, record.areas, strict=True
            )
        ],
    }
