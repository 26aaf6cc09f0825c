"""Read the rows of a YOLO label file; polygons and rotated boxes become their hulls."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from pathlib import Path

import numpy as np

from retina_jax.prepare.handling import RecordError
from retina_jax.prepare.names import BYTE_ORDER_MARK

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", re.ASCII | re.I)
HULLS = "polygons or rotated boxes, stored as their axis-aligned bounding boxes"
SCORES = "boxes with a score, which is not used"
KEYPOINTS = "boxes with keypoints, which are not used"


@dataclasses.dataclass(frozen=True)
class Row:
    """An object: its class, and centre x, y, width, height relative to the image size."""

    label: int
    box: tuple[float, float, float, float]


def read_labels(
    path: Path, class_count: int, keypoint_numbers: int, counts: collections.Counter[str]
) -> list[Row]:
    """Returns the rows of a file. Raises `RecordError` that names the file and the line.

    A row has a class, followed by a box (four numbers) or a polygon (six or more numbers: x y x y
    and so on), and optionally a score.

    Args:
      keypoint_numbers: how many numbers follow each box, from kpt_shape in data.yaml; 0 for none.
      counts: receives the number of polygons, scores and keypoints.
    """
    if not path.is_file():
        raise RecordError(f"{path}: not a regular file, or a broken link")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read ({error})") from None
    found = []
    here: collections.Counter[str] = collections.Counter()
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        fields = line.strip(BYTE_ORDER_MARK + " \t\0").split()
        if fields:
            record = f"{path}: line {number}"
            label = _label(record, fields[0], class_count)
            values = _values(record, fields[1:])
            box = _box(record, values, keypoint_numbers, here)
            if not all(map(math.isfinite, values)):
                raise RecordError(f"{path}: box {len(found) + 1} is not four finite numbers")
            if max(map(abs, box)) > 1.5:
                raise RecordError(
                    f"{path}: box {len(found) + 1} is outside 0 to 1; divide centre and size by "
                    "the image width and height"
                )
            found.append(Row(label, box))
    counts.update(here)
    return found


def _label(record: str, text: str, class_count: int) -> int:
    if not re.fullmatch(r"\d{1,18}(\.0*)?", text, re.ASCII):
        raise RecordError(f"{record}: invalid class_idx {text[:80]!a}")
    label = int(text.partition(".")[0])
    if label >= class_count:
        raise RecordError(
            f"{record}: class_idx {label} is out of range: there are {class_count} classes, "
            "numbered from 0"
        )
    return label


def _values(record: str, fields: list[str]) -> list[float]:
    for field in fields:
        if not _NUMBER.fullmatch(field):
            raise RecordError(f"{record}: {field[:80]!a} is not a number")
    return [float(field) for field in fields]


def _box(
    record: str, values: list[float], keypoint_numbers: int, counts: collections.Counter[str]
) -> tuple[float, float, float, float]:
    """Returns the centre and size of the object in a row."""
    if keypoint_numbers and len(values) in (4 + keypoint_numbers, 5 + keypoint_numbers):
        counts[KEYPOINTS] += 1
        counts[SCORES] += len(values) == 5 + keypoint_numbers
        return tuple(values[:4])
    if keypoint_numbers and len(values) != 4:
        raise RecordError(
            f"{record}: expected {5 + keypoint_numbers} fields (class, box and kpt_shape's "
            f"keypoints), found {1 + len(values)}"
        )
    if len(values) < 4:
        raise RecordError(
            f"{record}: expected 5 fields (class, centre x and y, width, height), found "
            f"{1 + len(values)}"
        )
    if len(values) == 4:
        return tuple(values)
    counts[SCORES] += len(values) % 2
    if len(values) == 5:
        return tuple(values[:4])
    counts[HULLS] += 1
    corners = np.array(values[: len(values) // 2 * 2]).reshape(-1, 2)
    low, high = corners.min(axis=0), corners.max(axis=0)
    return tuple(map(float, (*((low + high) / 2), *(high - low))))
