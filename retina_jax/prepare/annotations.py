"""What an annotation file says, whatever its format, checked record by record and as a whole."""

from __future__ import annotations

import collections
import dataclasses
import math
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from retina_jax.errors import UserError

_ENOUGH_BOXES = 10  # to tell the units of boxes by


@dataclasses.dataclass(frozen=True)
class Annotations:
    """One split's records, cross-checked; images in the order of the file.

    Images have id, file_name and perhaps width and height; annotations have bbox (x, y, width,
    height in pixels), category_id and perhaps iscrowd and area: COCO's own terms.
    """

    path: Path
    """For messages."""
    images: list[dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    """By image id."""
    categories: dict[int, str]


def refuse(path: Path, record: str, problem: str) -> UserError:
    """The error that names file and record."""
    return UserError(f"{path}: {record}: {problem}")


def check(path: Path, content: Any) -> Annotations:
    """COCO's structure as `Annotations`; `UserError` names file and record."""
    if not isinstance(content, dict):
        raise UserError(f"{path}: not COCO JSON (a {type(content).__name__}, not an object)")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(
                f"{path}: no list {key!r}; a COCO file has images, annotations, categories"
            )
    categories = _categories(path, content["categories"])
    images = _images(path, content["images"])
    annotations: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
    for i, annotation in enumerate(content["annotations"]):
        image_id = _whole(path, f"annotations[{i}]", annotation, "image_id")
        record = f"annotation {_short(annotation['id']) if 'id' in annotation else f'number {i}'}"
        if image_id not in images:
            raise refuse(path, record, f"image_id {image_id} is in no image")
        category_id = _whole(path, record, annotation, "category_id")
        if category_id not in categories:
            known = ", ".join(map(str, sorted(categories)[:20]))
            raise refuse(path, record, f"unknown category_id {category_id}; known are {known}")
        box = _field(path, record, annotation, "bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(is_finite(v) for v in box)):
            problem = f"bbox {_short(box)} is not four finite numbers [x, y, w, h]"
            raise refuse(path, record, problem)
        crowd = annotation.get("iscrowd", 0)
        if crowd not in (0, 1) or isinstance(crowd, float):
            raise refuse(path, record, f"iscrowd {_short(crowd)} is neither 0 nor 1")
        annotations[image_id].append(annotation)
    found = Annotations(path, list(images.values()), dict(annotations), categories)
    _check_units(found)
    return found


def _categories(path: Path, entries: list[Any]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for i, category in enumerate(entries):
        record = f"categories[{i}]"
        identity = _whole(path, record, category, "id")
        if identity in categories:
            raise refuse(path, record, f"id {identity} is there twice")
        name = _text(path, record, category, "name")
        if not name or name != " ".join(name.split()):
            raise refuse(path, record, f"name {_short(name)} is empty or oddly spaced")
        same = [other for other, known in categories.items() if known == name]
        if same:
            raise refuse(path, record, f"ids {same[0]} and {identity} are both named {name!r}")
        categories[identity] = name
    if not categories:
        raise UserError(f"{path}: categories is empty; name at least one class")
    return categories


def _images(path: Path, entries: list[Any]) -> dict[int, dict[str, Any]]:
    if not entries:
        raise UserError(f"{path}: images is empty; there is nothing to prepare")
    images: dict[int, dict[str, Any]] = {}
    named: dict[str, int] = {}
    for i, image in enumerate(entries):
        identity = _whole(path, f"images[{i}]", image, "id")
        record = f"image {identity}"
        if identity in images:
            raise refuse(path, f"images[{i}]", f"id {identity} is there twice")
        name = _text(path, record, image, "file_name")
        if not name or "\0" in name:
            raise refuse(path, record, f"file_name {_short(name)} is no name of a file")
        plain = str(PurePath(name))  # ./a.jpg is a.jpg
        if plain in named:
            problem = f"has the file_name {_short(name)} of image {named[plain]}; join the two"
            raise refuse(path, record, problem)
        for side in ("width", "height"):
            if image.get(side) is not None and _whole(path, record, image, side) == 0:
                raise refuse(path, record, f"{side} is 0")
        named[plain] = identity
        images[identity] = image
    return images


def _check_units(found: Annotations) -> None:
    """`UserError` for boxes that can hardly be x, y, width, height in pixels."""
    boxes, sides = [], []
    for image in found.images:
        if image.get("width") and image.get("height"):
            for annotation in found.annotations.get(image["id"], ()):
                boxes.append(annotation["bbox"])
                sides.append((image["width"], image["height"]))
    if not boxes:
        return
    given, sides = np.array(boxes, np.float64), np.array(sides, np.float64)
    corner, size = given[:, :2], given[:, 2:]
    if (np.abs(given) <= 1.5).all() and (sides > 8).all():
        raise UserError(
            f"{found.path}: all {len(given)} boxes lie between 0 and 1.5: they look normalised; "
            "multiply x and width by the picture's width, y and height by its height"
        )
    outside = (corner + size > sides + 1).any(axis=1).mean()
    as_corners = ((size > corner) & (size <= sides + 1)).all(axis=1).mean()
    if len(given) >= _ENOUGH_BOXES and outside > 0.2 and as_corners > 0.98:
        raise UserError(
            f"{found.path}: {outside:.0%} of its boxes pass their pictures' edges as [x, y, width, "
            "height] and almost all fit as [x1, y1, x2, y2]; subtract x1 from x2 and y1 from y2"
        )


def _short(value: Any) -> str:
    """For a line of a message: no more than 80 characters of what may be anything."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _field(path: Path, record: str, entry: Any, name: str) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        raise refuse(path, record, f"has no {name!r}")
    return entry[name]


def _text(path: Path, record: str, entry: Any, name: str) -> str:
    value = _field(path, record, entry, name)
    if not isinstance(value, str):
        raise refuse(path, record, f"{name} {_short(value)} is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise refuse(path, record, f"{name} {_short(value)} is no valid Unicode") from None
    return value


def _whole(path: Path, record: str, entry: Any, name: str) -> int:
    value = _field(path, record, entry, name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise refuse(path, record, f"{name} {_short(value)} is not a whole number")
    if not 0 <= value < 2**63:
        raise refuse(path, record, f"{name} {_short(value)} is negative or too large for 63 bits")
    return value


def is_finite(value: Any) -> bool:
    """Whether it is a number that floating point can hold."""
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False
