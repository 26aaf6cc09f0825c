"""Open a prepared data set: its records by row, image sizes and class names."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retina_jax.config.shell import command
from retina_jax.data.download import local_copy
from retina_jax.data.records import READS_ALL_MARKS, Index, IndexRow, hash_of, index_path
from retina_jax.errors import UserError
from retina_jax.files import open_path
from retina_jax.ops.boxes import tfds_yxyx_to_xyxy
from retina_jax.progress import Reporter


@dataclasses.dataclass(frozen=True)
class Example:
    """One record with an encoded image. Boxes: xyxy, float64, pixels of the original image."""

    image_id: int
    image: bytes
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a data set with random access; the order of the rows never changes."""

    name: str
    directory: Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: np.ndarray
    sizes: np.ndarray
    """``[rows, 2]``: height and width of each image, pixels."""
    box_counts: np.ndarray
    file_names: np.ndarray
    """Name of the image file of each row; "" if unknown."""
    _records: Sequence[Any]
    _label_of: np.ndarray | None = None
    """Label of each stored class; None if they are the same."""
    _index: Index | None = None
    pixel_scale: tuple[float, float] | None = None
    """Values of 16-bit and float images that became 0 and 255 in ``prepare``; None without such
    images. Prediction on such images from the same source needs the same scale."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, row: int) -> Example:
        """Returns the record of a row. Raises `UserError` if it is no longer on disk."""
        record = read_record(self._records, row, self.label())
        self._check_is(row, record)
        return self._example(row, record["image"], record["objects"])

    def _check_is(self, row: int, record: Mapping[str, Any]) -> None:
        """Raises `UserError` if the record does not match the index entry of its row."""
        known, name = int(self.image_ids[row]), name_of(record)
        own = image_id_of(record, row) if "image/id" in record else known
        if known not in (own, row) or (name and self.file_names[row] not in ("", name)):
            index = index_path(self.directory, self.name)
            raise UserError(
                f"row {row} of {self.label()} is image {own} ({name!a}), but {index.name} says "
                f"image {known} for it ({self.file_names[row]!a}); remove {index}, which does not "
                "match"
            )

    def annotations(self, row: int) -> Example:
        """Returns the record of a row without its image; reads only the index if possible."""
        index = self._index
        if index is None or index.boxes is None:
            return dataclasses.replace(self[row], image=b"")
        part = slice(index.first_box[row], index.first_box[row + 1])
        objects = {
            "bbox": index.boxes[part],
            "label": index.labels[part],
            "is_crowd": index.is_crowd[part],
            "area": index.areas[part],
        }
        return self._example(row, b"", objects)

    def _example(self, row: int, image: bytes, objects: Mapping[str, Any]) -> Example:
        height, width = (int(v) for v in self.sizes[row])
        boxes = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)
        boxes = tfds_yxyx_to_xyxy(boxes, height, width)
        count, size = len(boxes), boxes[:, 2:] - boxes[:, :2]
        labels = np.asarray(objects["label"], np.int32).reshape(count)
        return Example(
            image_id=int(self.image_ids[row]),
            image=image,
            boxes=boxes,
            labels=labels if self._label_of is None else self._label_of[labels],
            is_crowd=ignored(objects, count),
            areas=np.asarray(objects.get("area", size.prod(axis=1)), np.float64).reshape(count),
        )

    @functools.cached_property
    def object_counts(self) -> np.ndarray:
        """``[rows]``: number of boxes without crowds; all boxes if the index has no crowd flags."""
        index = self._index
        if index is None or index.is_crowd is None:
            return self.box_counts
        rows = np.repeat(np.arange(len(self)), self.box_counts)
        return np.bincount(rows[~index.is_crowd], minlength=len(self))

    def label_counts(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Counts objects and crowds per class, ``[classes]`` each; None if the index has no labels.

        Labels without a class are ignored.
        """
        labels, classes = self._labels(), len(self.class_names)
        if labels is None:
            return None
        return tuple(
            np.bincount(labels[(labels >= 0) & (self._index.is_crowd == crowd)], minlength=classes)
            for crowd in (False, True)
        )

    def objects(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and label of every box without crowds, ``[boxes]`` each, in row order.

        Labels without a class are left out. Reads every record if the index has no labels.
        """
        labels = self._labels()
        if labels is not None:
            counted = (labels >= 0) & ~self._index.is_crowd
            return np.repeat(np.arange(len(self)), self.box_counts)[counted], labels[counted]
        examples = [self.annotations(row) for row in range(len(self))]
        known = [e.labels[~e.is_crowd & (e.labels >= 0)] for e in examples]
        known = [labels[labels < len(self.class_names)] for labels in known]
        rows = np.repeat(np.arange(len(self)), [len(labels) for labels in known])
        return rows, np.concatenate([np.zeros(0, np.int32), *known])

    def _labels(self) -> np.ndarray | None:
        """Label of each box of the index, -1 without a class; None if the index has no labels."""
        index = self._index
        if index is None or index.labels is None:
            return None
        labels = index.labels
        if self._label_of is not None:
            known = (labels >= 0) & (labels < len(self._label_of))
            labels = np.where(known, self._label_of[np.where(known, labels, 0)], -1)
        return np.where((labels >= 0) & (labels < len(self.class_names)), labels, -1)

    def fingerprints(self) -> dict[str, str]:
        """Digests of the contents (`Index.fingerprints`)."""
        return self._index.fingerprints() if self._index is not None else {}

    def label(self) -> str:
        """For messages."""
        return f"{self.directory}, split {self.name}"


def data_dir(config_dir: str) -> Path:
    """Returns ``data.dir``, or the TFDS default folder if it is empty."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return open_path(config_dir or default, "--config.data.dir")


def find_data_set(directory: Path, name: str) -> Path:
    """Finds the newest version of data set ``name``; an empty name selects the only data set.

    Raises `UserError` with the command that prepares one, and the available data sets.
    """
    there = data_sets(directory)
    if not name and len(there) == 1:
        return next(iter(there.values()))
    if name in there:
        return there[name]
    files = ("--annotations", "train.json", "--annotations", "val.json")
    prepare = command("prepare", "coco", "--images", "IMAGES", *files, "--out", directory)
    advice = f"prepare a data set with: {prepare}"
    if there:
        advice += f", or set --config.data.name to one of: {', '.join(there)}"
    if not directory.is_dir():
        raise UserError(f"config.data.dir={str(directory)!r} is not a folder; {advice}")
    if not name:
        raise UserError(
            f"config.data.name is empty and {directory} contains {len(there)} data sets; {advice}"
        )
    raise UserError(f"no data set {name!r} under config.data.dir={str(directory)!r}; {advice}")


def data_sets(directory: Path) -> dict[str, Path]:
    """Returns the folders of the newest versions in ``directory``, by name."""
    found = {}
    infos = [*directory.glob("*/*/dataset_info.json"), *directory.glob("*/*/*/dataset_info.json")]
    versions = [i.parent for i in infos if re.fullmatch(r"\d+\.\d+\.\d+", i.parent.name)]
    for version in sorted(versions, key=lambda v: [int(n) for n in v.name.split(".")]):
        # name/version or name/config/version; the newest stays
        found[str(version.parent.relative_to(directory))] = version
    return dict(sorted(found.items()))


def tfds_builder(directory: Path) -> Any:
    """Returns the TFDS builder of the data set in a folder; None if its metadata is unreadable."""
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    try:
        return tfds.builder_from_directory(str(directory))
    except (
        OSError, ValueError, RuntimeError, AssertionError, KeyError, ParseError,
        tfds.core.DatasetNotFoundError,
    ):  # fmt: skip
        return None


def open_split(
    directory: Path, split: str, labels: str = "dense", report: Reporter | None = None
) -> Split:
    """Opens a split of the data set in ``directory``. Raises `UserError` if it is unreadable.

    ``labels`` is ``config.data.labels``: "dense" numbers the classes 0, 1, …; "category_ids" uses
    COCO ids as labels, with a class for every id from 0 to the largest (91, as torchvision). From
    an object store, the files of the split are first copied to disk, with progress on ``report``.
    """
    import tensorflow_datasets as tfds

    directory = local_copy(directory, split, report)
    builder = tfds_builder(directory)
    if builder is None:
        raise UserError(
            f"{directory} is damaged: its dataset_info.json or features.json cannot be read; "
            "prepare the data set again"
        )
    if split not in builder.info.splits:
        raise UserError(
            f"{directory} has no split {split!r}; it has {', '.join(builder.info.splits)}; set "
            "--config.data.train_split or --config.data.eval_split to one of them"
        )
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{directory} is {builder.info.file_format.value}, which has no random access; "
            "convert it with: "
            f"{command('prepare', 'tfds', '--directory', directory, '--out', 'DIR')}"
        )
    features = builder.info.features
    objects = getattr(features["objects"], "feature", {}) if "objects" in features else {}
    if "bbox" not in objects or "label" not in objects or not hasattr(objects["label"], "names"):
        raise UserError(
            f"{directory} is not a detection data set: it lacks objects/bbox, or "
            "objects/label with class names"
        )
    depth = np.dtype(features["image"].np_dtype if "image" in features else np.uint8)
    if depth != np.uint8:
        raise UserError(
            f"{directory} has {depth} images, but training needs 8 bits; convert them with: "
            f"{command('prepare', 'tfds', '--directory', directory, '--out', 'DIR')}"
        )
    try:
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except (RuntimeError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"{directory}, split {split}: its files cannot be read ({why}); prepare the data set "
            "again"
        ) from None
    class_names = tuple(objects["label"].names)
    metadata = builder.info.metadata or {}
    category_ids = tuple(metadata.get("category_ids", range(len(class_names))))
    label_of = None
    if labels == "category_ids":
        label_of = np.array(category_ids, np.int32)
        names = dict(zip(category_ids, class_names, strict=True))
        category_ids = tuple(range(max(category_ids) + 1))
        class_names = tuple(names.get(i, f"no class {i}") for i in category_ids)
    scale = metadata.get("pixel_scale")
    index = _index(directory, split, records, any(field in objects for field in IGNORED[1:]))
    return Split(
        name=split,
        directory=directory,
        class_names=class_names,
        category_ids=category_ids,
        image_ids=index.image_ids,
        sizes=index.sizes,
        box_counts=index.box_counts,
        file_names=index.file_names,
        _records=records,
        _label_of=label_of,
        _index=index,
        pixel_scale=tuple(map(float, scale)) if scale else None,
    )


def _index(directory: Path, split: str, records: Sequence[Any], foreign: bool) -> Index:
    """Loads or builds the index. ``foreign``: fields of other programs mark crowds."""
    index = Index.load(directory, split)
    whole = index is not None and len(index) == len(records)
    if whole and (not foreign or index.version >= READS_ALL_MARKS):
        return index
    # a data set that something else wrote: read the sizes once
    label = f"{directory}, split {split}"
    measured = (_measure(row, read_record(records, row, label)) for row in range(len(records)))
    index = Index.of(measured).with_unique_ids()
    if os.access(directory, os.W_OK):
        index.save(directory, split)
    return index


def read_record(records: Sequence[Any], row: int, label: str) -> Any:
    """Reads a row as TFDS returns it. Raises `UserError` with ``label`` if its file is damaged."""
    try:
        return records[row]
    except (RuntimeError, OSError, ValueError) as error:  # array_record's words
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"row {row} of {label} is damaged ({why}); prepare the data set again"
        ) from None


IGNORED = ("is_crowd", "is_difficult", "is_group_of")
"""Flags in TFDS data sets (COCO, VOC, Open Images) for objects that training and scoring ignore."""


def ignored(objects: Mapping[str, Any], count: int) -> np.ndarray:
    """Returns bool ``[count]``: the objects of a TFDS record that any `IGNORED` flag marks."""
    marked = np.zeros(count, bool)
    for field in IGNORED:
        if field in objects:
            marked |= np.asarray(objects[field], bool).reshape(count)
    return marked


def image_id_of(record: dict, row: int) -> int:
    """Returns the numeric id of a record, or its row if it has none."""
    try:
        return int(record["image/id"])
    except (KeyError, ValueError, TypeError):
        return row


def name_of(record: Mapping[str, Any]) -> str:
    """Returns the name of the image file of a record; "" if unknown."""
    name = record.get("image/filename", b"")
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _measure(row: int, record: dict) -> IndexRow:
    from PIL import Image

    with Image.open(io.BytesIO(record["image"])) as image:  # reads the header alone
        width, height = image.size
    objects = record["objects"]
    boxes = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)
    pixels = tfds_yxyx_to_xyxy(boxes, height, width)
    count, size = len(boxes), pixels[:, 2:] - pixels[:, :2]
    return IndexRow(
        image_id=image_id_of(record, row),
        height=height,
        width=width,
        file_name=name_of(record),
        boxes=boxes,
        labels=np.asarray(objects["label"]).reshape(count),
        is_crowd=ignored(objects, count),
        areas=np.asarray(objects.get("area", size.prod(axis=1)), np.float64).reshape(count),
        image_hash=hash_of(record["image"]),
    )
