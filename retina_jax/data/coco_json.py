"""COCO JSON and a folder of pictures to records: checked, mended where that is safe, counted.

What is mended is counted and said; what cannot be is an error that names file and record.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from retina_jax.boxes import coco_xywh_to_xyxy
from retina_jax.data.records import Record
from retina_jax.errors import UserError

_ORIENTATION = 0x0112  # EXIF tag
_READERS = 8
_READ_AHEAD = 64


@dataclasses.dataclass(frozen=True)
class CocoFile:
    """An annotation file, read and cross-checked; its images in the order of the file."""

    path: Path
    images: list[dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    """By image id."""
    categories: dict[int, str]


def _refuse(path: Path, record: str, problem: str) -> UserError:
    return UserError(f"{path}: {record}: {problem}")


def read_annotations(path: Path) -> CocoFile:
    """Reads a COCO JSON file. `UserError` names the file and the record that is wrong."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--annotations {path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not COCO JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not COCO JSON (a {type(content).__name__}, not an object)")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(
                f"{path}: no list {key!r}; a COCO file has images, annotations, categories"
            )
    categories = {}
    for i, category in enumerate(content["categories"]):
        identity = _whole(path, f"categories[{i}]", category, "id")
        if identity in categories:
            raise _refuse(path, f"categories[{i}]", f"id {identity} is there twice")
        name = str(_field(path, f"categories[{i}]", category, "name"))
        if not name or name != " ".join(name.split()):
            raise _refuse(path, f"categories[{i}]", f"name {name!r} is empty or oddly spaced")
        same = [other for other, known in categories.items() if known == name]
        if same:
            raise _refuse(
                path, f"categories[{i}]", f"ids {same[0]} and {identity} are both named {name!r}"
            )
        categories[identity] = name
    if not categories:
        raise UserError(f"{path}: categories is empty; name at least one class")
    if not content["images"]:
        raise UserError(f"{path}: images is empty; there is nothing to prepare")
    images: dict[int, dict[str, Any]] = {}
    for i, image in enumerate(content["images"]):
        identity = _whole(path, f"images[{i}]", image, "id")
        if identity in images:
            raise _refuse(path, f"images[{i}]", f"id {identity} is there twice")
        _field(path, f"image {identity}", image, "file_name")
        images[identity] = image
    annotations: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
    for i, annotation in enumerate(content["annotations"]):
        image_id = _whole(path, f"annotations[{i}]", annotation, "image_id")
        record = f"annotation {annotation.get('id', f'number {i}')}"
        if image_id not in images:
            raise _refuse(path, record, f"image_id {image_id} is in no image")
        category_id = _whole(path, record, annotation, "category_id")
        if category_id not in categories:
            known = ", ".join(map(str, sorted(categories)[:20]))
            raise _refuse(path, record, f"unknown category_id {category_id}; known are {known}")
        box = _field(path, record, annotation, "bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(_finite(v) for v in box)):
            raise _refuse(path, record, f"bbox {box!r} is not four finite numbers [x, y, w, h]")
        annotations[image_id].append(annotation)
    return CocoFile(path, list(images.values()), dict(annotations), categories)


def _field(path: Path, record: str, entry: Any, name: str) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        raise _refuse(path, record, f"has no {name!r}")
    return entry[name]


def _whole(path: Path, record: str, entry: Any, name: str) -> int:
    value = _field(path, record, entry, name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refuse(path, record, f"{name} {value!r} is not a whole number")
    if not 0 <= value < 2**63:
        raise _refuse(path, record, f"{name} {value} is negative or too large for 63 bits")
    return value


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class CocoReader:
    """Records of a `CocoFile`, and the count of what was mended on the way."""

    def __init__(self, coco: CocoFile, image_folder: Path, labels: dict[int, int]):
        """``labels``: category id to label."""
        self._coco = coco
        self._folder = image_folder
        self._labels = labels
        self.counts: collections.Counter[str] = collections.Counter()

    def check_files(self) -> None:
        """`UserError` that names the pictures that are not there, before anything is written."""
        missing = []
        for image in self._coco.images:
            if not self._path(image).is_file():
                missing.append(f"image {image['id']}: {image['file_name']!r}")
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise UserError(
                f"{self._coco.path}: missing in --images {self._folder}: "
                f"{'; '.join(missing[:5])}{more}"
            )

    def _path(self, image: dict[str, Any]) -> Path:
        name = Path(str(image["file_name"]))  # links may lead anywhere, names may not
        if name.is_absolute() or ".." in name.parts:
            raise self._refuse(image, "lies outside the image folder")
        return self._folder / name

    def _refuse(self, image: dict[str, Any], problem: str) -> UserError:
        record = f"image {image['id']} ({str(image['file_name'])!r})"
        return _refuse(self._coco.path, record, problem)

    def __iter__(self) -> Iterator[Record]:
        pending: collections.deque = collections.deque()
        with ThreadPoolExecutor(_READERS) as threads:
            for image in self._coco.images:
                pending.append(threads.submit(self._read, image))
                if len(pending) > _READ_AHEAD:
                    yield self._counted(pending.popleft().result())
            while pending:
                yield self._counted(pending.popleft().result())

    def _counted(self, outcome: tuple[Record, collections.Counter[str]]) -> Record:
        record, counts = outcome
        self.counts += counts
        return record

    def _read(self, image: dict[str, Any]) -> tuple[Record, collections.Counter[str]]:
        counts = collections.Counter(images=1)
        try:
            encoded = self._path(image).read_bytes()
        except OSError as error:
            raise self._refuse(image, f"cannot be read: {error.strerror}") from None
        encoded, height, width = self._upright_rgb(image, encoded, counts)
        boxes, annotations = self._boxes(image, height, width, counts)
        counts["boxes"] += len(boxes)
        counts["crowd boxes"] += sum(bool(a.get("iscrowd", 0)) for a in annotations)
        counts["images without boxes, kept as background"] += not len(boxes)
        sides = boxes[:, 2:] - boxes[:, :2]
        areas = [
            float(a["area"]) if _finite(a.get("area")) and a["area"] > 0 else float(side.prod())
            for a, side in zip(annotations, sides, strict=True)
        ]
        record = Record(
            image_id=image["id"],
            file_name=str(image["file_name"]),
            image=encoded,
            height=height,
            width=width,
            boxes=boxes,
            labels=np.array([self._labels[a["category_id"]] for a in annotations], np.int64),
            is_crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool),
            areas=np.array(areas, np.float64),
        )
        return record, counts

    def _upright_rgb(
        self, image: dict[str, Any], encoded: bytes, counts: collections.Counter[str]
    ) -> tuple[bytes, int, int]:
        """The picture as 8-bit grey or RGB in the frame of its boxes; its own bytes if it is so."""
        try:
            with Image.open(io.BytesIO(encoded)) as picture:
                picture.load()  # the whole of it: a cut file must not pass
                orientation = picture.getexif().get(_ORIENTATION, 1)
                raw = picture.copy()
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError,
                Image.DecompressionBombError) as error:  # fmt: skip
            problem = "is no picture" if isinstance(error, UnidentifiedImageError) else str(error)
            raise self._refuse(image, f"cannot be decoded: {problem}") from None
        upright = raw
        if orientation in range(2, 9):
            raw.getexif()[_ORIENTATION] = orientation
            upright = ImageOps.exif_transpose(raw)
            upright = self._frame_of_boxes(image, raw, upright, counts)
        width, height = upright.size
        named = image.get("width"), image.get("height")
        if None not in named and named != (width, height):
            raise self._refuse(
                image, f"has {width}×{height} pixels, the file says {named[0]}×{named[1]}"
            )
        if upright.mode == "L":
            counts["grey pictures, read as RGB"] += 1
        if orientation not in range(2, 9) and upright.mode in ("L", "RGB"):
            return encoded, height, width
        if upright.mode not in ("L", "RGB"):
            counts[f"pictures of mode {upright.mode}, written as 8-bit RGB"] += 1
            upright = _to_rgb(upright)
        buffer = io.BytesIO()
        upright.save(buffer, format="PNG")  # without loss
        return buffer.getvalue(), height, width

    def _frame_of_boxes(self, image, raw, upright, counts) -> Image.Image:
        """Boxes belong to the upright picture, unless the named size fits only the raw one."""
        named = (image.get("width"), image.get("height"))
        if named == raw.size != upright.size:
            counts["EXIF-rotated pictures left as stored, as their size in the file says"] += 1
            raw.info.pop("exif", None)
            return raw
        counts["EXIF-rotated pictures, turned upright"] += 1
        return upright

    def _boxes(
        self, image: dict[str, Any], height: int, width: int, counts: collections.Counter[str]
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        annotations = self._coco.annotations.get(image["id"], [])
        given = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
        has_area = (given[:, 2:] > 0).all(axis=1)
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


def _to_rgb(picture: Image.Image) -> Image.Image:
    """CMYK, 16-bit, palette, alpha … to 8-bit RGB; 16-bit keeps its high byte."""
    if picture.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        values = np.asarray(picture).astype(np.float64)
        high = np.clip(values / 256 if values.max(initial=0) > 255 else values, 0, 255)
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")
