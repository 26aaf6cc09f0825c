"""Read a TFDS detection data set as rows for `write_data_set`."""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from retina_jax.data.data_set import (
    IGNORED,
    ignored,
    image_id_of,
    name_of,
    read_record,
    tfds_builder,
)
from retina_jax.data.deep import PixelScale
from retina_jax.data.images import Look, PictureError, look, upright_rgb
from retina_jax.data.records import Record
from retina_jax.errors import UserError
from retina_jax.ops.boxes import tfds_yxyx_to_xyxy
from retina_jax.prepare.handling import Handling, RecordError
from retina_jax.prepare.reader import boxes_inside

_NO_COCO_CLASS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""Of COCO's ids 1 to 90, those without a class: TFDS keeps none of the ids."""


_USED_OF_OBJECTS = {"bbox", "label", "area", "id", *IGNORED}


class CatalogueRows:
    """One split, by row; its images and boxes pass the same checks as other formats."""

    def __init__(
        self,
        name: str,
        split: str,
        records: Sequence[Any],
        version: str = "",
        deep: bool = False,
        stored_scale: PixelScale | None = None,
    ):
        """
        Args:
          version: changes when the data set changes.
          deep: whether its images have more than 8 bits per channel.
          stored_scale: the scale with which an earlier ``prepare`` converted the images to 8 bits.
        """
        self._name = f"{name}, split {split}"
        self._version = version
        self._records = records
        self._deep = deep
        self.stored_scale = stored_scale
        self.handling = Handling()

    def __len__(self) -> int:
        return len(self._records)

    def name(self, row: int) -> str:
        """For messages."""
        return f"{self._name}: row {row}"

    def look(self, row: int, with_values: bool) -> Look | None:
        """Returns the range of a row's values if the features declare more than 8 bits."""
        if not (self._deep and with_values):
            return None
        if isinstance(self._records, InOrder):
            raise UserError(
                f"{self._name} has 16-bit or float images and can be read only once; set "
                "--pixel-range=LOW,HIGH to the values that become 0 and 255"
            )
        try:
            return look(read_record(self._records, row, self._name)["image"], with_values)
        except (PictureError, UserError):  # which read() will raise
            return None

    def check_units(self, looks: Sequence[Look | None]) -> None:
        """Does nothing: TFDS boxes are always normalised."""

    def counts(self) -> collections.Counter[str]:
        """Returns no counts: everything is counted per record."""
        return collections.Counter()

    def fingerprint(self, row: int) -> str:
        return f"{self._name} {self._version} {row}"

    def read(self, row: int) -> Record:
        record = read_record(self._records, row, self._name)
        counts = collections.Counter(images=1)
        scale, allow_truncated = self.handling.pixel_scale, self.handling.allow_truncated
        try:
            encoded, height, width = upright_rgb(
                record["image"], (None, None), counts, scale, allow_truncated
            )
        except PictureError as error:
            raise RecordError(f"{self.name(row)}: {error}") from None
        objects = record["objects"]
        corners = tfds_yxyx_to_xyxy(
            np.asarray(objects["bbox"], np.float64).reshape(-1, 4), height, width
        )
        xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        difficult = np.asarray(objects.get("is_difficult", np.zeros(len(xywh))), bool)
        counts["boxes marked difficult, kept as crowds"] += int(difficult.sum())
        groups = np.asarray(objects.get("is_group_of", np.zeros(len(xywh))), bool)
        counts["boxes marked as a group, kept as crowds"] += int(groups.sum())
        for field in sorted(set(objects) - _USED_OF_OBJECTS):
            used = np.asarray(objects[field])
            marked = int(used.astype(bool).sum()) if used.dtype == bool else len(xywh)
            counts[f"objects with {field!r}, which is not used"] += marked
        given = [
            {"bbox": box, "label": int(label), "crowd": bool(crowd), "area": float(area)}
            for box, label, crowd, area in zip(
                xywh,
                objects["label"],
                ignored(objects, len(xywh)),
                objects.get("area", np.prod(xywh[:, 2:], axis=1)),
                strict=True,
            )
        ]
        boxes, kept = boxes_inside(given, height, width, counts)
        counts["boxes"] += len(boxes)
        counts["crowd boxes"] += sum(a["crowd"] for a in kept)
        counts["images without boxes, kept as background"] += not kept
        return Record(
            image_id=image_id_of(record, row),
            file_name=name_of(record),
            image=encoded,
            height=height,
            width=width,
            boxes=boxes,
            labels=np.array([a["label"] for a in kept], np.int64),
            is_crowd=np.array([a["crowd"] for a in kept], bool),
            areas=np.array([a["area"] for a in kept], np.float64),
            counts=counts,
        )


class InOrder(Sequence):
    """Nearly sequential random access to data that can only be read from the start (TFRecord)."""

    _KEPT = 1024  # more than the writer has under way

    def __init__(self, records: Iterable[Any], length: int):
        self._records = iter(records)
        self._length = length
        self._read: dict[int, Any] = {}
        self._next = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> Any:
        with self._lock:
            while self._next <= row:
                self._read[self._next] = next(self._records)
                self._read.pop(self._next - self._KEPT, None)  # of a shard that was whole already
                self._next += 1
            return self._read.pop(row)


def open_catalogue(
    name: str, splits: dict[str, str], data_dir: Path | None
) -> tuple[dict[str, CatalogueRows], list[str], list[int]]:
    """Downloads a data set if needed; returns rows by split, class names and category ids.

    Args:
      splits: maps split names to TFDS splits, such as ``{"train": "train+validation"}``; if empty,
        train and validation are kept.
      data_dir: where TFDS stores its copy; None selects its default.
    """
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError:
        raise UserError(
            f"--catalogue {name} is not in the TFDS catalogue; try voc/2007 or coco/2017"
        ) from None
    except (ImportError, AttributeError) as error:
        raise _wants_tensorflow(name, error) from None
    except (OSError, ValueError, RuntimeError, tfds.download.DownloadError) as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(f"TFDS could not download or prepare {name}: {why}") from None
    return _open(name, builder, splits)


def open_directory(
    directory: Path, splits: dict[str, str]
) -> tuple[dict[str, CatalogueRows], list[str], list[int]]:
    """Like `open_catalogue`, for a data set that TFDS wrote to ``directory``, also as TFRecord."""
    builder = tfds_builder(directory)
    if builder is None:
        raise UserError(
            f"--directory {directory} contains no TFDS data set; give the version folder, which "
            "contains dataset_info.json"
        )
    return _open(str(directory), builder, splits)


def _open(name: str, builder, splits: dict[str, str]):
    features = builder.info.features
    objects = getattr(features["objects"], "feature", {}) if "objects" in features else {}
    if "image" not in features or "bbox" not in objects or not _has_classes(objects):
        raise UserError(
            f"{name} is not a detection data set: it lacks image, objects/bbox, or "
            "objects/label with class names"
        )
    if not splits:
        splits = {s: s for s in ("train", "validation") if s in builder.info.splits}
    rows = {}
    for split, theirs in splits.items():
        try:
            records = _records(name, builder, theirs)
        except (ValueError, KeyError):
            raise UserError(
                f"{name} has no split {theirs!r}; it has {', '.join(builder.info.splits)}"
            ) from None
        version = f"{builder.info.full_name} {builder.info.dataset_size}"
        deep = getattr(features["image"], "np_dtype", np.uint8) != np.uint8
        scale = (builder.info.metadata or {}).get("pixel_scale")
        rows[split] = CatalogueRows(
            name, theirs, records, version, deep, tuple(scale) if scale else None
        )
    class_names = list(objects["label"].names)
    return rows, class_names, _category_ids(class_names)


def _has_classes(objects: Mapping[str, Any]) -> bool:
    return "label" in objects and bool(getattr(objects["label"], "names", None))


def _records(name: str, builder, split: str) -> Sequence[Any]:
    decoders = {"image": tfds.decode.SkipDecoding()}
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        try:
            return builder.as_data_source(split, decoders=decoders)
        except (RuntimeError, OSError) as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(f"{name}, split {split}: its files cannot be read ({why})") from None
    try:
        dataset = builder.as_dataset(split, decoders=decoders, shuffle_files=False)
        return InOrder(tfds.as_numpy(dataset), len(dataset))
    except (ImportError, AttributeError) as error:
        raise _wants_tensorflow(name, error) from None


def _wants_tensorflow(name: str, error: Exception) -> Exception:
    if isinstance(error, ImportError) or "tensorflow" in str(error).lower():
        return UserError(
            f"reading {name} requires TensorFlow; install it: pip install tensorflow "
            "importlib_resources (in a checkout: pip install -e '.[catalogue]')"
        )
    return error


def _category_ids(class_names: list[str]) -> list[int]:
    coco_ids = [i for i in range(1, 91) if i not in _NO_COCO_CLASS]
    if (class_names[0], class_names[-1], len(class_names)) == ("person", "toothbrush", 80):
        return coco_ids
    return list(range(len(class_names)))
