"""The embedded data set: five kinds of shapes on clutter, drawn from a seed.

The textured backgrounds have lines, specks and blobs that are not objects. Most images have 1 to 8
rotated, overlapping objects in a wide range of sizes and contrasts. Some images are empty, and some
have a crowd. A broken loss or anchor shows at once in the AP.
"""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np

from retina_jax.data.data_set import data_dir, data_sets, find_data_set
from retina_jax.data.records import Record
from retina_jax.files import is_address
from retina_jax.prepare.writer import BusyError, write_data_set

CLASS_NAMES = ("disc", "ring", "bar", "triangle", "cross")
CATEGORY_IDS = (1, 2, 3, 4, 5)
SIDE = 128
SPLITS = {"train": 1200, "validation": 300}
_SUPERSAMPLE = 4
_EMPTY_SHARE = 0.05
_CROWD_SHARE = 0.05
_LEAST_VISIBLE = 0.7
_LEAN = np.pi / 6  # largest turn either way: objects stand, as they do in photographs
_HOLE = 0.55  # of a ring, over its radius


def _outline(kind: str, radius: float, angle: float, centre: np.ndarray) -> np.ndarray:
    """Corners of a shape, pixels."""
    if kind in ("disc", "ring"):
        turns, radii = np.linspace(0, 2 * np.pi, 64, endpoint=False), np.ones(64)
    elif kind == "bar":  # 2.5 times as long as wide
        lean = np.arctan2(2, 5)
        turns, radii = np.array([-lean, lean, np.pi - lean, np.pi + lean]), np.ones(4)
    elif kind == "triangle":
        turns, radii = np.arange(3) * 2 * np.pi / 3 - np.pi / 2, np.ones(3)
    elif kind == "cross":
        arm = np.arctan2(0.3, 0.95)
        quarter = np.array([-arm, arm, np.pi / 4])
        turns = np.concatenate([quarter + q * np.pi / 2 for q in range(4)])
        radii = np.tile([1.0, 1.0, np.hypot(0.3, 0.3)], 4)
    else:
        raise ValueError(kind)
    turns = turns + angle
    return centre + radius * radii[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)


def _mask(kind: str, corners: np.ndarray) -> np.ndarray:
    """Coverage of each pixel, 0 to 1, by supersampling."""
    side = SIDE * _SUPERSAMPLE
    canvas = np.zeros((side, side), np.uint8)
    outlines = [corners]
    if kind == "ring":
        centre = corners.mean(axis=0)
        outlines.append(centre + _HOLE * (corners - centre))  # even-odd: a hole
    polygons = [np.round(c * _SUPERSAMPLE).astype(np.int32) for c in outlines]
    cv2.fillPoly(canvas, polygons, 255)
    return cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _noise(rng: np.random.Generator, cells: int, depth: int) -> np.ndarray:
    """Smooth noise of about ``cells`` lumps a side, mean 0, ``[side, side, depth]``."""
    small = rng.standard_normal((cells, cells, depth)).astype(np.float32)
    large = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return large.reshape(SIDE, SIDE, depth)


def _ground(rng: np.random.Generator) -> np.ndarray:
    """A textured ground with clutter, float32 ``[side, side, 3]``."""
    picture = rng.uniform(40, 215, 3).astype(np.float32) + np.zeros((SIDE, SIDE, 3), np.float32)
    picture += 18 * _noise(rng, int(rng.integers(3, 8)), 3)
    picture += rng.uniform(4, 14) * _noise(rng, int(rng.integers(16, 48)), 1)
    for _ in range(rng.integers(2, 7)):  # lines
        start, end = rng.uniform(-10, SIDE + 10, (2, 2))
        colour = rng.uniform(0, 255, 3)
        width = int(rng.integers(1, 3))
        cv2.line(
            picture,
            tuple(map(int, start)),
            tuple(map(int, end)),
            colour.tolist(),
            width,
            cv2.LINE_AA,
        )
    for _ in range(rng.integers(0, 4)):  # soft blobs: round, yet without an edge
        x, y = rng.uniform(0, SIDE, 2)
        radius = rng.uniform(6, 20)
        grid = np.mgrid[:SIDE, :SIDE]
        bump = np.exp(-(((grid[1] - x) ** 2 + (grid[0] - y) ** 2) / (2 * radius**2)))
        picture += bump[..., None].astype(np.float32) * rng.uniform(-50, 50, 3).astype(np.float32)
    return np.clip(picture, 0, 255)


def _paint(picture: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paints a textured shape in a colour that contrasts with the background."""
    inside = mask > 0.5
    under = picture[inside].mean(axis=0) if inside.any() else picture.mean(axis=(0, 1))
    contrast = rng.uniform(50, 150)
    direction = rng.standard_normal(3)
    direction /= np.linalg.norm(direction)
    colour = under + contrast * direction * np.sqrt(3)
    flipped = under - contrast * direction * np.sqrt(3)
    beyond = [np.maximum(-c, 0).sum() + np.maximum(c - 255, 0).sum() for c in (colour, flipped)]
    colour = colour if beyond[0] <= beyond[1] else flipped
    paint = np.clip(colour, 0, 255) + rng.uniform(0, 12) * _noise(rng, 24, 1)
    return picture + mask[..., None] * (np.clip(paint, 0, 255) - picture)


def _box(mask: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Returns the tight xyxy box inside the image, in pixels."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    return np.clip(np.concatenate([low, high]), 0, SIDE)


def _draw(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[np.ndarray, int, bool, float]]]:
    """Draws an image and its objects as (box, label, is_crowd, area)."""
    picture = _ground(rng)
    fate = rng.uniform()
    objects = []
    masks: list[np.ndarray] = []
    wanted = 0 if fate < _EMPTY_SHARE else int(rng.integers(1, 9))
    if _EMPTY_SHARE <= fate < _EMPTY_SHARE + _CROWD_SHARE:
        picture, crowd = _draw_crowd(picture, rng)
        objects.append(crowd)
        masks.append(np.zeros((SIDE, SIDE), np.float32))
        wanted = min(wanted, 3)
    for _ in range(wanted):
        for _attempt in range(20):
            label = int(rng.integers(len(CLASS_NAMES)))
            radius = float(np.exp(rng.uniform(np.log(9), np.log(38))))
            margin = 0.6 * radius
            centre = rng.uniform(margin, SIDE - margin, 2)
            corners = _outline(CLASS_NAMES[label], radius, rng.uniform(-_LEAN, _LEAN), centre)
            mask = _mask(CLASS_NAMES[label], corners)
            whole = mask.sum()
            outline_area = cv2.contourArea(corners.astype(np.float32))
            if CLASS_NAMES[label] == "ring":
                outline_area *= 1 - _HOLE**2
            crowd_boxes = [o[0] for o in objects if o[2]]
            if (
                whole >= 0.7 * outline_area
                and not any(_overlap(_box(mask, corners), box) > 0 for box in crowd_boxes)
                and all((m * (1 - mask)).sum() >= _LEAST_VISIBLE * m.sum() for m in masks)
            ):
                break
        else:
            continue
        picture = _paint(picture, mask, rng)
        masks = [m * (1 - mask) for m in masks] + [mask]
        objects.append((_box(mask, corners), label, False, float(whole)))
    picture += rng.uniform(1, 6) * rng.standard_normal(picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), objects


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    size = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.maximum(size, 0)))


def _draw_crowd(picture: np.ndarray, rng: np.random.Generator):
    """Draws a dense group of one class as one crowd box."""
    label = int(rng.integers(len(CLASS_NAMES)))
    middle = rng.uniform(40, SIDE - 40, 2)
    covered = np.zeros((SIDE, SIDE), np.float32)
    boxes = []
    for _ in range(rng.integers(10, 18)):
        centre = middle + rng.uniform(-26, 26, 2)
        corners = _outline(
            CLASS_NAMES[label], rng.uniform(5, 9), rng.uniform(-_LEAN, _LEAN), centre
        )
        mask = _mask(CLASS_NAMES[label], corners)
        picture = _paint(picture, mask, rng)
        covered = np.maximum(covered, mask)
        boxes.append(_box(mask, corners))
    boxes = np.stack(boxes)
    box = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    return picture, (box, label, True, float(covered.sum()))


def draw_record(split: str, row: int) -> Record:
    """Draws the image of a row, which depends only on the split and the row."""
    rng = np.random.default_rng((list(SPLITS).index(split), row))
    picture, objects = _draw(rng)
    ok, encoded = cv2.imencode(".png", picture[..., ::-1])
    if not ok:
        raise RuntimeError("OpenCV could not encode a PNG")
    return Record(
        image_id=row + 1,
        file_name=f"{split}_{row:05d}.png",
        image=encoded.tobytes(),
        height=SIDE,
        width=SIDE,
        boxes=np.array([o[0] for o in objects], np.float64).reshape(-1, 4),
        labels=np.array([o[1] for o in objects], np.int64),
        is_crowd=np.array([o[2] for o in objects], bool),
        areas=np.array([o[3] for o in objects], np.float64),
    )


class _Drawn:
    """The first rows of a split, in the form that `write_data_set` reads."""

    def __init__(self, split: str, rows: int):
        self._split = split
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def read(self, row: int) -> Record:
        return draw_record(self._split, row)

    def fingerprint(self, row: int) -> str:
        return f"{self._split} {row}"


def build(data_dir: Path, rows: dict[str, int] | None = None, name: str = "shapes") -> Path:
    """Draws and writes the data set, or its first ``rows`` for tests; returns its directory."""
    directory, _ = write_data_set(
        data_dir,
        name,
        {split: _Drawn(split, count) for split, count in (rows or SPLITS).items()},
        CLASS_NAMES,
        CATEGORY_IDS,
        __doc__.splitlines()[0],
    )
    return directory


def open_data_set(config_dir: str, name: str) -> Path:
    """Returns the directory of a data set; draws ``shapes`` on disk if it does not exist yet.

    ``config_dir`` and ``name`` are ``data.dir`` and ``data.name``. Raises `UserError` if the data
    set does not exist.
    """
    directory = data_dir(config_dir)
    while name == "shapes" and not is_address(directory) and name not in data_sets(directory):
        try:
            build(directory)
        except BusyError:  # a run beside this one draws it
            time.sleep(1)
    return find_data_set(directory, name)
