"""For images much larger than the network's input: overlapping tiles, with merged detections."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from retina_jax.errors import UserError
from retina_jax.evaluation.nms import Rule, class_wise_nms
from retina_jax.types import Detections

_AT_EDGE = 2.0  # pixels between a box and an edge of its tile that may cut the object


@dataclasses.dataclass(frozen=True)
class Tile:
    """A part of an image, pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How images are cut: tiles of ``side`` × ``side`` pixels, and their overlap as a fraction."""

    side: int
    overlap: float = 0.2

    def __post_init__(self):
        if self.side < 32:
            raise UserError(f"--tile={self.side} must be 32 pixels or more, such as --tile=800")
        if not 0 <= self.overlap < 1:
            raise UserError(
                f"--overlap={self.overlap} must be 0 or more and below 1: the overlap of "
                "neighbouring tiles as a fraction of their side; set --overlap=0.2"
            )

    def tiles(self, height: int, width: int) -> list[Tile]:
        """The tiles of an image, evenly spread and of equal size; one tile if the image fits."""
        high, wide = min(self.side, height), min(self.side, width)
        return [
            Tile(top, left, high, wide)
            for top in self._starts(height)
            for left in self._starts(width)
        ]

    def _starts(self, length: int) -> list[int]:
        if length <= self.side:
            return [0]
        step = max(1.0, self.side * (1 - self.overlap))
        count = math.ceil((length - self.side) / step) + 1
        return [round(i * (length - self.side) / (count - 1)) for i in range(count)]


def merge(
    tiles: Sequence[Tile], parts: Sequence[Detections], size: tuple[int, int], rule: Rule
) -> Detections:
    """The detections of an image of ``size`` (height, width) from those of its tiles.

    Boxes of ``parts`` are in pixels of their tile; those of the result in pixels of the image. The
    detections of a single tile are returned unchanged. Otherwise, hard NMS between boxes of
    different tiles, with ``rule.iou``, removes duplicates. NMS and the limit on detections have
    already been applied to each tile, so the image as a whole has no limit.

    A tile may cut an object that its neighbour shows whole. The IoU of the two boxes can be small.
    A box that touches a tile's edge inside the image is therefore also dropped if an uncut box of
    its class, with at least its score, covers more than ``rule.iou`` of it.
    """
    if len(tiles) == 1:
        return parts[0]
    moved, cut = [], []
    for tile, part in zip(tiles, parts, strict=True):
        boxes = np.asarray(part.boxes, np.float64).reshape(-1, 4)
        moved.append(boxes + np.array([tile.left, tile.top, tile.left, tile.top]))
        right, bottom = tile.left + tile.width, tile.top + tile.height
        cut.append(
            ((boxes[:, 0] < _AT_EDGE) & (tile.left > 0))
            | ((boxes[:, 1] < _AT_EDGE) & (tile.top > 0))
            | ((boxes[:, 2] > tile.width - _AT_EDGE) & (right < size[1]))
            | ((boxes[:, 3] > tile.height - _AT_EDGE) & (bottom < size[0]))
        )
    boxes, is_cut = np.concatenate(moved), np.concatenate(cut)
    scores = np.concatenate([part.scores for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    of_rule = np.zeros_like(labels) if rule.agnostic else labels
    alive = np.ones(len(boxes), bool)
    whole = np.flatnonzero(~is_cut)
    for i in np.flatnonzero(is_cut):
        others = whole[(scores[whole] >= scores[i]) & (of_rule[whole] == of_rule[i])]
        alive[i] = not (_covered(boxes[i], boxes[others]) > rule.iou).any()
    rows = np.flatnonzero(alive)
    tile_of = np.repeat(np.arange(len(parts)), [len(part.scores) for part in parts])
    kept = class_wise_nms(
        boxes[rows], scores[rows], of_rule[rows], rule.iou, len(rows), tile_of[rows]
    )
    rows = rows[kept]
    return Detections(boxes=boxes[rows], scores=scores[rows], labels=labels[rows])


def _covered(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The fraction of ``box`` that each of ``others`` covers."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    return shared / max(float((box[2:] - box[:2]).prod()), 1e-9)
