"""Annotations and a folder of pictures to records: checked, mended where that is safe, counted.

What is mended is counted and said; what cannot be is an error that names file and record.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from retina_jax.data.images import SUFFIXES, PictureError, upright_rgb
from retina_jax.data.records import Record
from retina_jax.errors import UserError
from retina_jax.ops.boxes import coco_xywh_to_xyxy
from retina_jax.prepare.annotations import Annotations, is_finite, refuse
from retina_jax.prepare.linked import is_inside


class AnnotationReader:
    """The records of a split, by row; safe to read from several threads."""

    def __init__(
        self,
        annotations: Annotations,
        image_folder: Path,
        labels: dict[int, int],
        follow_links: bool = False,
    ):
        """``labels``: category id to label. ``follow_links``: out of the folder, too."""
        self._annotations = annotations
        self._folder = image_folder
        self._root = image_folder.resolve()
        self._labels = labels
        self._follow_links = follow_links

    def __len__(self) -> int:
        return len(self._annotations.images)

    def check_files(self) -> None:
        """`UserError` that names the pictures that are not there, before anything is written."""
        missing = []
        for image in self._annotations.images:
            if not self._is_file(image):
                missing.append(f"image {image['id']}: {image['file_name']!r}")
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise UserError(
                f"{self._annotations.path}: missing in --images {self._folder}: "
                f"{'; '.join(missing[:5])}{more}"
            )

    def _is_file(self, image: dict[str, Any]) -> bool:
        path = self._path(image)
        try:
            return path.is_file()
        except OSError as error:  # a name too long for any file
            raise self._refuse(image, error.strerror or str(error)) from None

    def _path(self, image: dict[str, Any]) -> Path:
        name = Path(image["file_name"])
        if name.is_absolute() or ".." in name.parts:
            raise self._refuse(image, "lies outside the image folder")
        path = self._folder / name
        if not self._follow_links and not is_inside(path, self._root):
            raise self._refuse(
                image, "is a link out of the image folder; add --follow-links if you trust it"
            )
        return path

    def _refuse(self, image: dict[str, Any], problem: str) -> UserError:
        record = f"image {image['id']} ({image['file_name'][:120]!r})"
        return refuse(self._annotations.path, record, problem)

    def fingerprint(self, row: int) -> str:
        """Of all that a row is made from, without reading its picture."""
        image = self._annotations.images[row]
        try:
            stat = os.stat(self._path(image))
        except OSError as error:
            raise self._refuse(image, f"cannot be read: {error.strerror}") from None
        source = [
            image,
            self._annotations.annotations.get(image["id"], []),
            stat.st_size,
            stat.st_mtime_ns,
        ]
        return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()

    def read(self, row: int) -> Record:
        """The record of a row; `UserError` names it where it cannot be used."""
        image = self._annotations.images[row]
        counts = collections.Counter(images=1)
        named = image.get("width"), image.get("height")
        try:
            encoded, height, width = upright_rgb(self._path(image).read_bytes(), named, counts)
        except OSError as error:
            raise self._refuse(image, f"cannot be read: {error.strerror}") from None
        except PictureError as error:
            raise self._refuse(image, str(error)) from None
        given = self._annotations.annotations.get(image["id"], [])
        boxes, annotations = boxes_inside(given, height, width, counts)
        counts["boxes"] += len(boxes)
        counts["crowd boxes"] += sum(bool(a.get("iscrowd", 0)) for a in annotations)
        counts["images without boxes, kept as background"] += not len(boxes)
        sides = boxes[:, 2:] - boxes[:, :2]
        most = float(height * width)
        areas = [
            min(float(a["area"]), most)
            if is_finite(a.get("area")) and a["area"] > 0
            else float(side.prod())
            for a, side in zip(annotations, sides, strict=True)
        ]
        return Record(
            image_id=image["id"],
            file_name=image["file_name"],
            image=encoded,
            height=height,
            width=width,
            boxes=boxes,
            labels=np.array([self._labels[a["category_id"]] for a in annotations], np.int64),
            is_crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool),
            areas=np.array(areas, np.float64),
            counts=counts,
        )


def boxes_inside(
    annotations: list[dict[str, Any]], height: int, width: int, counts: collections.Counter[str]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """xyxy of the annotations whose boxes have area within the picture, cut to it, and they."""
    given = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    has_area = (given[:, 2:] > 0).all(axis=1)
    with np.errstate(over="ignore"):  # a far edge beyond floating point is cut like any other
        boxes = coco_xywh_to_xyxy(given)
    inside = np.clip(boxes, 0, [width, height, width, height])
    left = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    counts["boxes of no area, dropped"] += int((~has_area).sum())
    counts["boxes wholly outside their picture, dropped"] += int((has_area & ~left).sum())
    # half a pixel: annotation tools round
    cut = has_area & left & (np.abs(inside - boxes).max(axis=1, initial=0) > 0.5)
    counts["boxes partly outside, cut to their picture"] += int(cut.sum())
    keep = has_area & left
    return inside[keep], [a for a, k in zip(annotations, keep, strict=True) if k]


def unnamed_pictures(folder: Path, named: set[str]) -> list[str]:
    """Pictures in a folder, or in those below it, that no annotation names; sorted."""
    found = []
    for root, _, files in os.walk(folder):
        for file in files:
            if Path(file).suffix.lower() in SUFFIXES:
                name = str((Path(root) / file).relative_to(folder))
                if name not in named:
                    found.append(name)
    return sorted(found)
