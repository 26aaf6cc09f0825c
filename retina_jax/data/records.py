"""How a detection data set is written: a TFDS ArrayRecord directory with an index beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from retina_jax.errors import UserError

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


class _DetectionBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, class_names, category_ids, description, splits, **kwargs):
        self._class_names = list(class_names)
        self._category_ids = [int(i) for i in category_ids]
        self._description = description
        self._splits = splits
        self.index: dict[str, list[tuple[int, int, int, int]]] = {}
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "image/id": np.int64,
                "image/filename": tfds.features.Text(),
                "objects": tfds.features.Sequence(
                    {
                        "bbox": tfds.features.BBoxFeature(),
                        "label": tfds.features.ClassLabel(names=self._class_names),
                        "is_crowd": np.bool_,
                        "area": np.float32,
                    }
                ),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._description,
            features=features,
            metadata=tfds.core.MetadataDict({"category_ids": self._category_ids}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._examples(split, make) for split, make in self._splits.items()}

    def _generate_examples(self):
        raise NotImplementedError  # abstract in TFDS; the splits bring their own generators

    def _examples(self, split: str, make: Callable[[], Iterable[Record]]) -> Iterator:
        rows = self.index[split] = []
        for key, record in enumerate(make()):
            rows.append((record.image_id, record.height, record.width, len(record.boxes)))
            yield key, _example(record)


def _example(record: Record) -> dict:
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


def index_path(directory: Path, split: str) -> Path:
    """Where the sizes of a split's images are kept: image_id, height, width, boxes by row."""
    return directory / f"index_{split}.npy"


def save_index(directory: Path, split: str, index: np.ndarray) -> None:
    """Whole or not at all."""
    path = index_path(directory, split)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, index)
    partial.rename(path)


def data_set_directory(data_dir: Path, name: str) -> Path:
    return data_dir / name / VERSION


def write_data_set(
    data_dir: Path,
    name: str,
    splits: Mapping[str, Callable[[], Iterable[Record]]],
    class_names: Sequence[str],
    category_ids: Sequence[int],
    description: str,
) -> Path:
    """Writes ``data_dir/name/1.0.0`` and returns it; whole or not at all.

    Args:
      splits: for each split, what makes its records, in the order they shall have.
      class_names: by label.
      category_ids: the data set's own id of each label, for results.

    TFDS writes beside the target and renames at the end, so a killed run leaves nothing that
    could be taken for a data set.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"--name={name} must be lower-case letters, digits and _; try --name="
            + (re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_0123456789") or "custom")
        )
    builder_class = type(name, (_DetectionBuilder,), {"name": name}, skip_registration=True)

    def make_builder() -> _DetectionBuilder:
        return builder_class(
            data_dir=data_dir,
            class_names=class_names,
            category_ids=category_ids,
            description=description,
            splits=splits,
        )

    tfds.disable_progress_bar()
    directory = data_set_directory(data_dir, name)
    try:
        builder = make_builder()
        # nothing is downloaded, yet TFDS says so and makes a folder for it
        with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as downloads:
            builder.download_and_prepare(download_dir=downloads)
        for split, rows in builder.index.items():
            save_index(directory, split, np.asarray(rows, np.int64).reshape(-1, 4))
    except OSError as error:
        if not (directory / "dataset_info.json").exists():  # else another process was faster
            raise UserError(
                f"{directory} cannot be written ({error.strerror or error}); give a folder with "
                "room that can be written"
            ) from None
    return directory
