"""The content of an annotation file in any format, checked per record and as a whole."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from retina_jax.errors import UserError
from retina_jax.prepare.handling import LeftOut, RecordError
from retina_jax.prepare.names import clean

TURNED = "rotated boxes, stored as their axis-aligned bounding boxes"
_USED_OF_ANNOTATIONS = set("id image_id category_id bbox area iscrowd ignore attributes".split())
_USED_OF_IMAGES = set(
    "id file_name width height license coco_url flickr_url date_captured url".split()
)
_ENOUGH_BOXES = 10  # to tell the units of boxes by


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The cross-checked records of one split, with images in file order.

    The keys are those of COCO. Images have id, file_name and optionally width and height.
    Annotations have bbox (x, y, width, height in pixels), category_id, iscrowd and optionally id
    and area.
    """

    path: Path
    """For messages."""
    images: list[dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    """By image id."""
    categories: dict[int, str]
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Counts of other content in the file: how it is read, or that it is not used."""
    left_out: tuple[str, ...] = ()
    """Unusable records, one line each; empty unless records may be left out."""


def refuse(path: Path, record: str, problem: str) -> RecordError:
    """Returns an error that names the file and the record."""
    return RecordError(f"{path}: {record}: {problem}")


def check(path: Path, content: Any, left_out: LeftOut | None = None) -> Annotations:
    """Checks COCO content and returns it as `Annotations`.

    ``left_out`` collects the unusable records. A bad annotation excludes its whole image;
    otherwise, training would treat the object as background. Raises `UserError` that names the
    file and the record.
    """
    left_out = LeftOut() if left_out is None else left_out
    if not isinstance(content, dict):
        raise UserError(f"{path}: not COCO JSON (a {type(content).__name__}, not an object)")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(
                f"{path}: has no list {key!r}; COCO JSON has images, annotations, categories"
            )
    categories = _categories(path, content["categories"])
    images, bad_images = _images(path, content["images"], left_out)
    annotations: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
    counts: collections.Counter[str] = collections.Counter()
    for i, annotation in enumerate(content["annotations"]):
        image_id = None
        try:
            image_id = _whole(path, f"annotations[{i}]", annotation, "image_id")
            if image_id in bad_images:
                continue
            named = "id" in annotation
            record = f"annotation {_short(annotation['id']) if named else f'number {i}'}"
            if image_id not in images:
                raise refuse(path, record, f"image_id {image_id} matches no image")
            checked = _annotation(path, record, annotation, categories, counts)
        except RecordError as error:
            left_out.add(error)
            bad_images.add(image_id)
        else:
            annotations[image_id].append(checked)
    images = {i: image for i, image in images.items() if i not in bad_images}
    if not images:
        raise UserError(f"{path}: none of its images can be used; the first: {left_out.lines[0]}")
    with_boxes = {a["category_id"] for of_image in annotations.values() for a in of_image}
    counts["classes without boxes"] += len(categories.keys() - with_boxes)
    for image in images.values():
        _count_unused("images", image, _USED_OF_IMAGES, counts)
    found = Annotations(
        path,
        list(images.values()),
        {i: of_image for i, of_image in annotations.items() if i in images},
        categories,
        counts,
        tuple(left_out.lines),
    )
    check_units(found, {i: (v.get("width"), v.get("height")) for i, v in images.items()})
    return found


def _annotation(
    path: Path,
    record: str,
    annotation: dict[str, Any],
    categories: dict[int, str],
    counts: collections.Counter[str],
) -> dict[str, Any]:
    """Returns the used fields of an annotation and counts the others."""
    category_id = _whole(path, record, annotation, "category_id")
    if category_id not in categories:
        known = ", ".join(map(str, sorted(categories)[:20]))
        raise refuse(path, record, f"unknown category_id {category_id}; the known ids are {known}")
    box = _field(path, record, annotation, "bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(is_finite(v) for v in box)):
        problem = f"bbox {_short(box)} is not four finite numbers [x, y, w, h]"
        raise refuse(path, record, problem)
    flags = {}
    for flag in ("iscrowd", "ignore"):
        value = annotation.get(flag)
        value = 0 if value is None and flag == "ignore" else annotation.get(flag, 0)
        if value not in (0, 1) or isinstance(value, float):
            raise refuse(path, record, f"{flag} {_short(value)} is neither 0 nor 1")
        flags[flag] = bool(value)
    counts["boxes marked ignore, kept as crowds"] += flags["ignore"] and not flags["iscrowd"]
    checked = {
        "bbox": box,
        "category_id": category_id,
        "iscrowd": int(flags["iscrowd"] or flags["ignore"]),
    }
    checked |= {name: annotation[name] for name in ("id", "area") if name in annotation}
    attributes = annotation.get("attributes")
    if isinstance(attributes, dict):
        turn = attributes.get("rotation") or 0
        if not is_finite(turn):
            problem = f"attributes.rotation {_short(turn)} is not a finite number of degrees"
            raise refuse(path, record, problem)
        if turn % 360:
            counts[TURNED] += 1
            checked.setdefault("area", max(box[2], 0) * max(box[3], 0))
            checked["bbox"] = turned_hull(box, turn)
        _count_unused("attributes of annotations", attributes, {"rotation"}, counts)
    _count_unused("annotations", annotation, _USED_OF_ANNOTATIONS, counts)
    return checked


def turned_hull(box: Sequence[float], degrees: float) -> list[float]:
    """Returns the axis-aligned hull (xywh) of an xywh box rotated about its centre."""
    x, y, width, height = map(float, box)
    cosine, sine = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    across, down = width * cosine + height * sine, width * sine + height * cosine
    return [x + (width - across) / 2, y + (height - down) / 2, across, down]


def _count_unused(
    what: str, entry: dict[str, Any], used: set[str], counts: collections.Counter[str]
) -> None:
    """Counts non-empty fields of an entry that are not used."""
    for name, value in entry.items():
        empty = value is None or value is False or value in (0, "", "0") or value in ([], {})
        if name not in used and not empty:
            counts[f"{what} with {_short(name)}, which is not used"] += 1


def _categories(path: Path, entries: list[Any]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for i, category in enumerate(entries):
        record = f"categories[{i}]"
        try:
            identity = _whole(path, record, category, "id")
            name = clean(_text(path, record, category, "name"))
        except RecordError as error:  # no record that could be left out
            raise UserError(str(error)) from None
        if identity in categories:
            raise UserError(f"{path}: {record}: duplicate id {identity}")
        if not name or name != " ".join(name.split()):
            raise UserError(f"{path}: {record}: name {_short(name)} is empty or has extra spaces")
        same = [other for other, known in categories.items() if known == name]
        if same:
            raise UserError(
                f"{path}: {record}: ids {same[0]} and {identity} have the same name {name!r}"
            )
        categories[identity] = name
    if not categories:
        raise UserError(f"{path}: categories is empty; define at least one class")
    return categories


def _images(
    path: Path, entries: list[Any], left_out: LeftOut
) -> tuple[dict[int, dict[str, Any]], set[int | None]]:
    """Returns the images by id, and the ids of images that were left out."""
    if not entries:
        raise UserError(f"{path}: images is empty; there is nothing to prepare")
    images: dict[int, dict[str, Any]] = {}
    named: dict[str, int] = {}
    bad: set[int | None] = set()
    for i, image in enumerate(entries):
        identity = None
        try:
            identity = _whole(path, f"images[{i}]", image, "id")
            record = f"image {identity}"
            if identity in images:
                raise refuse(path, f"images[{i}]", f"duplicate id {identity}")
            name = _text(path, record, image, "file_name")
            if not name or "\0" in name:
                raise refuse(path, record, f"file_name {_short(name)} is not a valid file name")
            plain = str(PurePath(name))  # ./a.jpg is a.jpg
            if plain in named:
                problem = f"has the same file_name {_short(name)} as image {named[plain]}"
                bad.add(named[plain])
                raise refuse(path, record, f"{problem}; merge them")
            for side in ("width", "height"):
                if image.get(side) is not None and _whole(path, record, image, side) == 0:
                    raise refuse(path, record, f"{side} is 0")
        except RecordError as error:
            left_out.add(error)
            bad.add(identity)
        else:
            named[plain] = identity
            images[identity] = image
    return {i: image for i, image in images.items() if i not in bad}, bad


def check_units(found: Annotations, sizes: Mapping[int, tuple[int | None, int | None]]) -> None:
    """Raises `UserError` if the boxes are unlikely to be x, y, width, height in pixels.

    ``sizes`` maps each image id to its width and height. Images of unknown size are skipped.
    """
    boxes, sides = [], []
    for identity, of_image in found.annotations.items():
        if all(sizes.get(identity, (None,))):
            boxes += [annotation["bbox"] for annotation in of_image]
            sides += [sizes[identity]] * len(of_image)
    if not boxes:
        return
    given, sides = np.array(boxes, np.float64), np.array(sides, np.float64)
    corner, size = given[:, :2], given[:, 2:]
    if (np.abs(given) <= 1.5).all() and (sides > 8).all():
        raise UserError(
            f"{found.path}: no coordinate of its {len(given)} boxes exceeds 1.5, so they look "
            "normalised; multiply x and width by the image width, y and height by the image height"
        )
    with np.errstate(over="ignore"):
        far = corner + size
    outside = (far > sides + 1).any(axis=1).mean()
    as_corners = ((size > corner) & (size <= sides + 1)).all(axis=1).mean()
    if len(given) >= _ENOUGH_BOXES and outside > 0.2 and as_corners > 0.98:
        raise UserError(
            f"{found.path}: read as [x, y, width, height], {outside:.0%} of its boxes extend past "
            "the image; read as [x1, y1, x2, y2], almost all fit; subtract x1 from x2 and y1 "
            "from y2"
        )


def _short(value: Any) -> str:
    """Formats any value for a message, with at most 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _field(path: Path, record: str, entry: Any, name: str) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        raise refuse(path, record, f"has no {name!r}")
    return entry[name]


def _text(path: Path, record: str, entry: Any, name: str) -> str:
    value = _field(path, record, entry, name)
    if not isinstance(value, str):
        raise refuse(path, record, f"{name} {_short(value)} is not a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise refuse(path, record, f"{name} {_short(value)} is not valid Unicode") from None
    return value


def _whole(path: Path, record: str, entry: Any, name: str) -> int:
    value = _field(path, record, entry, name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise refuse(path, record, f"{name} {_short(value)} is not an integer")
    if not 0 <= value < 2**63:
        raise refuse(path, record, f"{name} {_short(value)} is negative or too large for 63 bits")
    return value


def is_finite(value: Any) -> bool:
    """Whether the value is a finite number that fits in floating point."""
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False
