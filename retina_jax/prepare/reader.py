"""Convert annotations and images to records that are checked, and fixed where that is safe.

Each fix is counted and reported. Anything else raises an error that names the file and the record.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retina_jax.data.deep import may_be_deep
from retina_jax.data.images import Look, PictureError, look, upright_rgb, upright_size
from retina_jax.data.records import Record
from retina_jax.ops.boxes import coco_xywh_to_xyxy
from retina_jax.prepare.annotations import Annotations, check_units, is_finite, refuse
from retina_jax.prepare.handling import Handling, RecordError
from retina_jax.prepare.linked import is_inside
from retina_jax.prepare.names import Folder, leads_outside


class AnnotationReader:
    """Reads the records of a split by row; thread-safe."""

    def __init__(
        self,
        annotations: Annotations,
        image_folder: Path,
        labels: dict[int, int],
        follow_links: bool = False,
    ):
        """``labels`` maps category ids to labels. ``follow_links``: also outside the folder."""
        self.annotations = annotations
        self.handling = Handling()
        self.stored_scale = None  # pictures are as they were
        self._folder = Folder(image_folder)
        self._root = image_folder.resolve()
        self._labels = labels
        self._follow_links = follow_links

    def __len__(self) -> int:
        return len(self.annotations.images)

    def check_files(self) -> None:
        """Raises `RecordError` that names missing images, before anything is written."""
        missing = []
        for image in self.annotations.images:
            if not self._found(image):
                missing.append(f"image {image['id']}: {self._missing(image)}")
                if len(missing) == 5:  # the nearest names take time to find
                    break
        if missing:
            rest = self.annotations.images[self.annotations.images.index(image) + 1 :]
            others = sum(not self._found(image) for image in rest)
            more = f" and {others} more" if others else ""
            raise RecordError(
                f"{self.annotations.path}: missing from --images {self._folder.path}: "
                f"{'; '.join(missing)}{more}"
            )

    def used_files(self) -> set[str]:
        """Returns the names of the image files to read, relative to the folder."""
        return {str(Path(file)) for files in self._files.values() for file in files}

    def counts(self) -> collections.Counter[str]:
        """Returns counts of other annotation content, and of files found under another spelling."""
        matched = sum(
            len(self._files[image["id"]]) == 1
            and Path(self._files[image["id"]][0]) != Path(image["file_name"])
            for image in self.annotations.images
        )
        other = "images whose file name is spelt differently in the annotations"
        return self.annotations.counts + collections.Counter({other: matched})

    @functools.cached_property
    def _files(self) -> dict[int, list[str]]:
        """By image id: the files that match its name."""
        found = {}
        for image in self.annotations.images:
            name = image["file_name"]
            files = [] if leads_outside(name) else self._folder.find(name)
            found[image["id"]] = [f for f in files if (self._folder.path / f).is_file()]
        return found

    @functools.cached_property
    def _images_of(self) -> dict[str, list[int]]:
        """By file: ids of the images that use it."""
        found: dict[str, list[int]] = {}
        for identity, files in self._files.items():
            for file in files:
                found.setdefault(file, []).append(identity)
        return found

    def _missing(self, image: dict[str, Any]) -> str:
        name = image["file_name"][:120]
        near = self._folder.nearest(name)
        return f"{name!a}" + (f" (did you mean {near!a}?)" if near and near != name else "")

    def _found(self, image: dict[str, Any]) -> Path | None:
        """Returns the image file, or None if missing; raises `RecordError` if it is not allowed."""
        name = image["file_name"]
        if leads_outside(name):
            raise self._refuse(image, "lies outside the image folder")
        try:
            files = self._files[image["id"]]
            if len(files) > 1:
                several = " and ".join(f"{file!a}" for file in files[:3])
                raise self._refuse(image, f"matches {several}; write the exact name")
            others = [i for file in files for i in self._images_of[file] if i != image["id"]]
            if others:
                problem = f"uses the same file {files[0]!a} as image {others[0]}; merge them"
                raise self._refuse(image, problem)
            path = self._folder.path / (files[0] if files else name)
            if not self._follow_links and not is_inside(path, self._root):
                raise self._refuse(
                    image,
                    "is a link that leads outside the image folder; if you trust it, use the "
                    "prepare command with --follow-links",
                )
            return path if path.is_file() else None
        except OSError as error:  # a name too long for any file
            raise self._refuse(image, error.strerror or str(error)) from None

    def _path(self, image: dict[str, Any]) -> Path:
        path = self._found(image)
        if path is None:
            raise self._refuse(image, f"missing from --images {self._folder.path}")
        return path

    def _refuse(self, image: dict[str, Any], problem: str) -> RecordError:
        record = f"image {image['id']} ({image['file_name'][:120]!a})"
        return refuse(self.annotations.path, record, problem)

    def look(self, row: int, with_values: bool) -> Look | None:
        """Returns what the first pass needs from a row; None if `read` will raise an error.

        ``with_values`` includes the value range of 16-bit and float images.
        """
        image = self.annotations.images[row]
        size = image.get("width"), image.get("height")
        try:
            path = self._path(image)
            with path.open("rb") as file:
                deep = with_values and may_be_deep(file.read(32))
            if deep:
                seen = look(path.read_bytes(), with_values)
                return dataclasses.replace(seen, size=size) if all(size) else seen
            return Look(size if all(size) else upright_size(path))
        except (OSError, PictureError, RecordError):
            return None

    def check_units(self, looks: Sequence[Look | None]) -> None:
        """Raises `UserError` if the boxes are unlikely to be in pixels, given all image sizes."""
        sizes = {
            image["id"]: seen.size
            for image, seen in zip(self.annotations.images, looks, strict=True)
            if seen
        }
        check_units(self.annotations, sizes)

    def name(self, row: int) -> str:
        """For messages."""
        return f"{self.annotations.path}: {self.annotations.images[row]['file_name'][:120]!a}"

    def fingerprint(self, row: int) -> str:
        """Returns a hash of the sources of a row, without reading the image."""
        image = self.annotations.images[row]
        try:
            path = self._path(image)
            stat = os.stat(path)
            file = [path.name, stat.st_size, stat.st_mtime_ns]
        except (OSError, RecordError) as error:  # which read() will raise
            file = [type(error).__name__]
        source = [image, self.annotations.annotations.get(image["id"], []), file]
        return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()

    def read(self, row: int) -> Record:
        """Returns the record of a row. Raises `RecordError` that names an unusable record."""
        image = self.annotations.images[row]
        counts = collections.Counter(images=1)
        named = image.get("width"), image.get("height")
        try:
            encoded, height, width = upright_rgb(
                self._path(image).read_bytes(),
                named,
                counts,
                self.handling.pixel_scale,
                self.handling.allow_truncated,
            )
        except OSError as error:
            raise self._refuse(image, f"cannot be read: {error.strerror}") from None
        except PictureError as error:
            raise self._refuse(image, str(error)) from None
        given = self.annotations.annotations.get(image["id"], [])
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
    """Returns boxes (xyxy) clipped to the image and their annotations; drops empty boxes."""
    given = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    has_area = (given[:, 2:] > 0).all(axis=1)
    with np.errstate(over="ignore"):  # a far edge beyond floating point is cut like any other
        boxes = coco_xywh_to_xyxy(given)
    inside = np.clip(boxes, 0, [width, height, width, height])
    left = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    counts["boxes without area, dropped"] += int((~has_area).sum())
    counts["boxes outside their image, dropped"] += int((has_area & ~left).sum())
    # half a pixel: annotation tools round
    cut = has_area & left & (np.abs(inside - boxes).max(axis=1, initial=0) > 0.5)
    counts["boxes partly outside their image, clipped"] += int(cut.sum())
    keep = has_area & left
    return inside[keep], [a for a, k in zip(annotations, keep, strict=True) if k]
