"""Detects objects in a stream of images: reads ahead, fills batches, restores the order."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from retina_jax import parallel
from retina_jax.config import resolve, validate
from retina_jax.config.values import placement_rule
from retina_jax.data.augment import show, whole
from retina_jax.data.images import PictureError
from retina_jax.data.loader import decoding_threads
from retina_jax.data.plan import Placement, place
from retina_jax.errors import UserError
from retina_jax.evaluation.nms import Rule
from retina_jax.prediction.ahead import in_threads
from retina_jax.prediction.artefact import Artefact
from retina_jax.prediction.batches import Window, make_batches
from retina_jax.prediction.network import Network
from retina_jax.prediction.pictures import Picture
from retina_jax.prediction.result import ImageDetections
from retina_jax.prediction.tiles import Tile, Tiling, merge
from retina_jax.types import Detections

Outcome = ImageDetections | PictureError


@dataclasses.dataclass(frozen=True, eq=False)
class Read:
    """An image that was read: its size and its tiles, scaled for the network."""

    size: tuple[int, int]
    """Height and width, pixels."""
    tiles: list[Tile]
    scaled: list[tuple[Placement, np.ndarray]]
    """Of each tile: where it is placed, and its pixels; `Predictor.detect` takes them out."""


@dataclasses.dataclass(eq=False)
class _Open:
    """An image in the stream whose tiles are not all processed yet."""

    picture: Picture
    read: Read | PictureError
    parts: dict[int, Detections] = dataclasses.field(default_factory=dict)

    def is_done(self) -> bool:
        return isinstance(self.read, PictureError) or len(self.parts) == len(self.read.tiles)


class Predictor:
    """Detects objects in images of any size, with one compiled program per bucket (input shape).

    Any number of threads may call `stream`, `read` and `detect`.
    """

    def __init__(
        self,
        network: Network | Artefact,
        batch_size: int = 1,
        threshold: float | None = None,
        tiling: Tiling | None = None,
        nms: str | None = None,
        class_agnostic: bool | None = None,
    ):
        """Puts the network on as many devices of this host as can share ``batch_size`` equally.

        An exported model is loaded when its first image arrives.

        Args:
          batch_size: images (or tiles) per forward pass.
          threshold: keeps detections that score above this; None: ``eval.score_threshold`` of the
            config.
          tiling: how to cut images into tiles; None: not at all.
          nms: "hard" or "soft"; None: ``eval.nms`` of the config.
          class_agnostic: whether boxes of different classes suppress each other; None: as in the
            config.

        Raises `UserError` for a value out of range, or one that an exported model does not support.
        """
        if batch_size < 1:
            raise UserError(f"--batch-size={batch_size} must be 1 or more; set --batch-size=8")
        if threshold is not None:
            check_threshold(threshold)
        self.network = network
        self.config = config = network.config.copy_and_resolve_references().unlock()
        config.eval.batch_size = batch_size
        if threshold is not None:
            config.eval.score_threshold = float(threshold)
        if nms is not None:
            config.eval.nms = nms
        if class_agnostic is not None:
            config.eval.class_agnostic = class_agnostic
        validate(config)
        config.lock()
        self._detect = network.make_detect(config)
        self._tiling = tiling

    def stream(self, pictures: Iterable[Picture]) -> Iterator[tuple[Picture, Outcome]]:
        """Each image, in order, with its detections, or the reason why it cannot be read.

        Reads a few batches ahead; memory does not grow with the number of images. Raises
        `UserError` if the device's memory is too small.
        """
        return self.detect(in_threads(self.read, pictures, decoding_threads(0)))

    def detect(
        self, pictures: Iterable[tuple[Picture, Read | PictureError]]
    ) -> Iterator[tuple[Picture, Outcome]]:
        """`stream`, for images from `read`; each can be used only once."""
        options, rule = self.config.eval, Rule.of(self.config.eval)
        pending: collections.deque[_Open] = collections.deque()
        owner: dict[int, tuple[_Open, int]] = {}

        def windows() -> Iterator[Window]:
            number = 0
            for picture, read in pictures:
                entry = _Open(picture, read)
                pending.append(entry)
                if isinstance(read, PictureError):
                    continue
                for i, (placement, pixels) in enumerate(read.scaled):
                    tile = read.tiles[i]
                    owner[number] = entry, i
                    yield Window(number, placement, (tile.height, tile.width), pixels)
                    number += 1
                read.scaled.clear()

        def done() -> Iterator[tuple[Picture, Outcome]]:
            while pending and pending[0].is_done():
                entry = pending.popleft()
                yield entry.picture, self._outcome(entry, rule)

        batches = make_batches(windows(), resolve(self.config).buckets, options.batch_size)
        advice = f"lower the batch size (--batch-size={options.batch_size})"
        with parallel.explain_out_of_memory(advice):
            for number, detections in self._detect(batches):
                entry, part = owner.pop(number)
                entry.parts[part] = detections
                yield from done()
            yield from done()

    def _outcome(self, entry: _Open, rule: Rule) -> Outcome:
        if isinstance(entry.read, PictureError):
            return entry.read
        parts = [entry.parts[i] for i in range(len(entry.parts))]
        size, network = entry.read.size, self.network
        merged = merge(entry.read.tiles, parts, size, rule)
        return ImageDetections.of(merged, size, network.classes, entry.picture, network.pixel_scale)

    def read(self, picture: Picture) -> Read | PictureError:
        """An image decoded and scaled as in evaluation, or the reason why it cannot be read."""
        try:
            pixels = picture.pixels(self.network.pixel_scale)
        except PictureError as error:
            return error
        size = pixels.shape[:2]
        tiles = self._tiling.tiles(*size) if self._tiling else [Tile(0, 0, *size)]
        scaled = [
            self._scaled(pixels[t.top : t.top + t.height, t.left : t.left + t.width]) for t in tiles
        ]
        return Read(size, tiles, scaled)

    def _scaled(self, image: np.ndarray) -> tuple[Placement, np.ndarray]:
        """The pixels that the evaluation's loader would write into a batch."""
        data = self.config.data
        placement = place(*image.shape[:2], **placement_rule(self.config))
        kind = np.float32 if data.float_pixels else np.uint8
        out = np.zeros((placement.height, placement.width, 3), kind)
        image = np.ascontiguousarray(image, kind)
        show(image, whole(placement), data.antialias, out)
        return placement, out


def check_threshold(threshold: float, named: str = "--threshold") -> None:
    """Raises `UserError` for a threshold outside 0 to 1."""
    if not 0 <= threshold <= 1:
        raise UserError(f"{named}={threshold} must lie between 0 and 1; set {named}=0.5")
