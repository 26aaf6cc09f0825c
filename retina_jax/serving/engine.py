"""The network as a server uses it: read one image; run a batch of images of one bucket."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from retina_jax.config import resolve
from retina_jax.data.images import PictureError, TooManyPixels, stored_size
from retina_jax.data.plan import Placement
from retina_jax.prediction.network import Network
from retina_jax.prediction.pictures import Picture
from retina_jax.prediction.result import ImageDetections
from retina_jax.prediction.stream import Predictor, Read
from retina_jax.prediction.tiles import Tile
from retina_jax.training.workdir import Classes

_MEASURING, _MOST_RUNS = 2.0, 10
"""Seconds after which the timing of a bucket's programs stops, and the maximum number of runs."""
Ready = tuple[Picture, Read]
"""An image that was read and scaled; its `Picture` holds only the name."""


class Engine(Protocol):
    """A detector as the server needs it. Any thread may call all methods except `warm_up`."""

    name: str
    """Name of the model, shown to users."""
    classes: Classes
    threshold: float
    """Minimum score of a detection."""
    batch_size: int
    buckets: Sequence[tuple[int, int]]
    """Height and width of each input shape."""

    def read(self, name: str, encoded: bytes, most_pixels: int) -> tuple[int, Ready]:
        """Decodes and scales an image file; returns its bucket and the input of `run`.

        Raises `PictureError` for a file that cannot be read. For an image of more than
        ``most_pixels``, raises `TooManyPixels` before decoding anything.
        """

    def run(self, bucket: int, images: list[Ready]) -> list[ImageDetections]:
        """The detections of at most ``batch_size`` images of one bucket."""

    def pays_from(self, bucket: int) -> int:
        """The smallest number of images for which a batch is faster than one image at a time."""

    def warm_up(self, done: Callable[[str], None]) -> None:
        """Compiles every program that `run` may need; calls ``done`` with a line for each."""


class NetworkEngine:
    """An `Engine` of a trained network, with two compiled programs per bucket.

    One takes a single image, the other ``batch_size`` images. Both are needed because a batch costs
    the same however few images it holds: on a CPU nearly as much as ``batch_size`` single images,
    on an accelerator far less.
    """

    def __init__(
        self, network: Network, name: str, batch_size: int = 8, threshold: float | None = None
    ):
        """``threshold``: minimum score of a detection; None: ``eval.score_threshold`` of the run.

        Raises `UserError` for a value out of range.
        """
        self._batch = Predictor(network, batch_size, threshold)
        self._single = Predictor(network, 1, threshold) if batch_size > 1 else self._batch
        self.name, self.batch_size = name, batch_size
        self.classes = network.classes
        self.threshold = float(self._batch.config.eval.score_threshold)
        self.buckets = tuple(resolve(self._batch.config).buckets)
        self._pays_from = {}

    def read(self, name: str, encoded: bytes, most_pixels: int) -> tuple[int, Ready]:
        width, height = stored_size(encoded)
        if width * height > most_pixels:
            raise TooManyPixels(
                f"has {width}×{height} pixels ({width * height / 1e6:.1f} megapixels); the limit "
                f"is {most_pixels / 1e6:g} megapixels"
            )
        read = self._single.read(Picture(name, encoded))
        if isinstance(read, PictureError):
            raise read
        return read.scaled[0][0].bucket, (Picture(name, b""), read)

    def run(self, bucket: int, images: list[Ready]) -> list[ImageDetections]:
        predictor = self._single if len(images) == 1 else self._batch
        return [outcome for _, outcome in predictor.detect(images)]

    def pays_from(self, bucket: int) -> int:
        return self._pays_from.get(bucket, 2)

    def warm_up(self, done: Callable[[str], None]) -> None:
        sizes = sorted({1, self.batch_size})
        for bucket, (height, width) in enumerate(self.buckets):
            for count in sizes:
                self._timed(bucket, count)  # compiles
                done(f"{height}×{width}, batch {count}")
            seconds = self._seconds(bucket, sizes)
            least = math.ceil(seconds[self.batch_size] / seconds[1])
            self._pays_from[bucket] = max(2, min(least, self.batch_size))

    def _seconds(self, bucket: int, sizes: Sequence[int]) -> dict[int, float]:
        """The shortest time of each program; the programs are timed in turn."""
        least, spent = dict.fromkeys(sizes, math.inf), 0.0
        for _ in range(_MOST_RUNS):
            for count in sizes:
                taken = self._timed(bucket, count)
                least[count] = min(least[count], taken)
                spent += taken
            if spent > _MEASURING:
                break
        return least

    def _timed(self, bucket: int, count: int) -> float:
        started = time.perf_counter()
        self.run(bucket, [self._noise(bucket) for _ in range(count)])
        return time.perf_counter() - started

    def _noise(self, bucket: int) -> Ready:
        """An image of random pixels that fills the input shape."""
        size = self.buckets[bucket]
        kind = np.float32 if self._single.config.data.float_pixels else np.uint8
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(kind)
        read = Read(size, [Tile(0, 0, *size)], [(Placement(bucket, *size), pixels)])
        return Picture("warm-up", b""), read
