"""Reads and writes videos with OpenCV."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from retina_jax.data.images import PictureError

_USUAL_RATE = 25.0  # images/s, for a video that states none


class VideoReader:
    """The frames of a video file, one after the other."""

    def __init__(self, path: Path):
        """Raises `PictureError` if OpenCV cannot open it."""
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            self._capture.release()
            raise PictureError("cannot be opened as a video; convert it to MP4")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if math.isfinite(rate) and 0 < rate <= 1000 else _USUAL_RATE
        """Frames per second."""
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if math.isfinite(count) and count > 0 else None
        """Number of frames that the file states; None: unknown."""
        size = (self._capture.get(p) for p in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
        self.height, self.width = map(int, size)

    def frames(self) -> Iterator[np.ndarray]:
        """The following frames, RGB uint8 ``[h, w, 3]``."""
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            yield np.ascontiguousarray(frame[..., ::-1])

    def skip(self, count: int) -> None:
        """Skips frames without decoding them to pixels."""
        for _ in range(count):
            if not self._capture.grab():
                return

    def close(self) -> None:
        self._capture.release()


@contextlib.contextmanager
def open_writer(path: Path, rate: float) -> Iterator[VideoWriter]:
    """Writes an MP4 of ``rate`` frames per second to ``path``."""
    writer = VideoWriter(path, rate)
    try:
        yield writer
    finally:
        writer.close()


class VideoWriter:
    """Writes frames of one size, which is that of the first."""

    def __init__(self, path: Path, rate: float):
        self._path, self._rate = path, rate
        self._writer: cv2.VideoWriter | None = None
        self._size: tuple[int, int] | None = None

    def write(self, frame: np.ndarray) -> None:
        """Adds a frame, RGB uint8 ``[h, w, 3]``. Raises `OSError` if the file cannot be made."""
        height, width = (side - side % 2 or 2 for side in frame.shape[:2])  # codecs need even sides
        if self._writer is None:
            self._size = width, height
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._path), code, self._rate, self._size)
            if not self._writer.isOpened():
                raise OSError(f"{self._path}: OpenCV cannot write an MP4 of {width}×{height}")
        if (width, height) != self._size:
            frame = cv2.resize(frame, self._size)
        width, height = self._size
        self._writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
