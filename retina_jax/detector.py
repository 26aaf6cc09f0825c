"""The library's face: `Detector` detects objects in pictures of any kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from retina_jax.data.images import PictureError
from retina_jax.errors import UserError
from retina_jax.prediction.artefact import Artefact, from_export
from retina_jax.prediction.network import Network, from_weights, from_workdir
from retina_jax.prediction.pictures import Picture, find_files
from retina_jax.prediction.result import Detection, ImageDetections, labels_of
from retina_jax.prediction.stream import Predictor, check_threshold
from retina_jax.prediction.tiles import Tiling

if TYPE_CHECKING:
    import ml_collections

__all__ = ["Detection", "Detector", "ImageDetections"]

PictureLike = str | Path | np.ndarray | Image.Image
"""A file; an array; an opened image."""


class Detector:
    """A trained RetinaNet that detects objects in pictures.

        from retina_jax import Detector

        detector = Detector.from_workdir("runs/r50")
        found = detector("street.jpg", threshold=0.5)
        for box, score, label, name in found:
            print(name, score, box)
        found.draw().save("detections.jpg")

    Pictures are scaled and normalised, and detections selected, as in evaluation. XLA compiles one
    program per input shape (``data.buckets``), when the first picture of that shape comes. Several
    threads may use one detector.
    """

    def __init__(
        self,
        network: Network | Artefact,
        *,
        batch_size: int = 1,
        threshold: float | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
        nms: str | None = None,
        class_agnostic: bool | None = None,
    ):
        """`from_workdir`, `from_weights` and `from_export` are the usual ways to make one.

        Args:
          network: from `retina_jax.prediction.network`, or `retina_jax.prediction.artefact`.
          batch_size: pictures per call of the network; a single picture costs as much as a batch.
            The devices of this host share a batch.
          threshold: smallest score of a detection; None: ``eval.score_threshold`` of the run.
          tile: for pictures much larger than the network's input: detect in tiles of so many
            pixels a side, and merge the detections.
          overlap: share of a tile, 0 to 1, that its neighbour also shows.
          nms: "hard" or "soft"; None: ``eval.nms`` of the run.
          class_agnostic: whether boxes of different classes suppress each other; None: as in the
            run (``eval.class_agnostic``).

        Raises `UserError` for values out of range.
        """
        tiling = None if tile is None else Tiling(tile, overlap)
        self._predictor = Predictor(network, batch_size, threshold, tiling, nms, class_agnostic)
        self._network = network

    @classmethod
    def from_workdir(
        cls, workdir: str | Path, *, checkpoint: str = "best", **options: Any
    ) -> Detector:
        """A detector from a run's workdir; its data set is not needed.

        Args:
          workdir: the folder that ``retina-jax train --workdir`` wrote.
          checkpoint: "best" by AP (the latest if none was evaluated), or "latest".
          options: of the constructor, such as ``batch_size``.

        Raises `UserError` for a folder without a trained run.
        """
        return cls(from_workdir(workdir, checkpoint), **options)

    @classmethod
    def from_weights(
        cls,
        path: str | Path,
        config: ml_collections.ConfigDict | str | Path,
        *,
        class_names: Sequence[str] | None = None,
        **options: Any,
    ) -> Detector:
        """A detector from a weight file: of ``export-weights``, torchvision or Detectron2.

        Args:
          path: a .safetensors, .pth (needs torch) or .pkl file.
          config: describes the network and its input: an experiment's config, its Python file, or
            the workdir of a run.
          class_names: names of the classes; None: those in the file, else "class 0", ….
          options: of the constructor, such as ``batch_size``.

        Raises `UserError` if the file cannot be read or does not fit the config.
        """
        return cls(from_weights(path, config, class_names), **options)

    @classmethod
    def from_export(cls, path: str | Path, **options: Any) -> Detector:
        """A detector from a file that ``retina-jax export`` wrote: StableHLO, or ONNX.

        An exported model is code, not data: load it only if you trust its origin. Prints that on
        stderr. The files are compared with the SHA-256 in ``model.json`` before they run.

        It finds what the run finds. Its score threshold and NMS are built in: a higher
        ``threshold`` selects, a lower one is refused. It runs on one device. A model of a fixed
        batch size takes any number of pictures; an incomplete batch costs as much as a full one.

        Args:
          path: the folder of the export, or one of its files, for that input shape alone.
          options: of the constructor; the default of ``batch_size`` is that of the export, or 1.

        Raises `UserError` for a path that is no complete export, for options that differ from what
        is built in, and without onnxruntime for ONNX.
        """
        artefact = from_export(path)
        options.setdefault("batch_size", artefact.loader.card["batch_size"] or 1)
        return cls(artefact, **options)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        return self._network.classes.names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The COCO category ids of the classes, by label."""
        return self._network.classes.ids

    @property
    def threshold(self) -> float:
        """The smallest score of a detection."""
        return float(self._predictor.config.eval.score_threshold)

    @overload
    def __call__(
        self,
        pictures: np.ndarray | Image.Image,
        *,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> ImageDetections: ...
    @overload
    def __call__(
        self,
        pictures: str | Path,
        *,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> ImageDetections | list[ImageDetections]: ...
    @overload
    def __call__(
        self,
        pictures: Sequence[PictureLike],
        *,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> list[ImageDetections]: ...
    @overload
    def __call__(
        self,
        pictures: Iterator[PictureLike],
        *,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> Iterator[ImageDetections]: ...
    def __call__(self, pictures, *, threshold=None, classes=None):
        """Detects in one picture, or in many.

        A picture is the path of a file; an array, ``[h, w, 3]`` RGB or ``[h, w]`` grey, uint8 (also
        RGBA; uint16 and floating point are scaled as in training, floats otherwise lie in 0 to 1);
        or an image that Pillow opened. Grey, CMYK, 16-bit and rotated (EXIF) pictures are treated
        as ``retina-jax prepare`` treats them.

        Args:
          pictures: a picture; a list of pictures; the path of a folder, or a pattern with ``*``; or
            a generator of pictures.
          threshold: leave out detections that do not score above it.
          classes: names of the classes to return; None: all.

        Returns:
          The `ImageDetections` of a picture; a list of them, in order, for a list, a folder or a
          pattern; an iterator for a generator, which is read a few batches ahead.

        Raises `UserError`, naming the picture, if one cannot be read, for a path without pictures,
        an unknown class, and a threshold below the detector's.
        """
        select = self._selection(threshold, classes)
        if isinstance(pictures, (str, Path)):
            path = Path(pictures).expanduser()
            if path.is_file():
                return next(self._detect([path], select))
            return list(self._detect(find_files(pictures, "pictures").paths, select))
        if isinstance(pictures, Image.Image) or _is_one_array(pictures):
            return next(self._detect([pictures], select))
        if isinstance(pictures, Iterator):
            return self._detect(pictures, select)
        return list(self._detect(pictures, select))

    def _selection(
        self, threshold: float | None, classes: Sequence[str] | None
    ) -> tuple[float, list[int] | None]:
        least = self.threshold
        if threshold is not None:
            check_threshold(threshold, "threshold")
            if threshold < least:
                raise UserError(
                    f"threshold={threshold} is below the detector's, {least}; make the detector "
                    f"with threshold={threshold}"
                )
        if isinstance(classes, str):
            classes = [classes]
        labels = None if classes is None else labels_of(classes, self._network.classes, "classes")
        return max(least, threshold or 0.0), labels

    def _detect(
        self, pictures: Iterable[PictureLike], select: tuple[float, list[int] | None]
    ) -> Iterator[ImageDetections]:
        named = (_picture(p, number) for number, p in enumerate(pictures))
        for picture, outcome in self._predictor.stream(named):
            if isinstance(outcome, PictureError):
                raise UserError(f"{picture.name} {outcome}")
            yield outcome.select(*select)


def _is_one_array(pictures: Any) -> bool:
    """Whether it is an array (of any library) of one picture, not of several."""
    return hasattr(pictures, "__array__") and np.ndim(pictures) < 4


def _picture(given: Any, number: int) -> Picture:
    if isinstance(given, (str, Path)):
        return Picture(str(given), Path(given).expanduser())
    if isinstance(given, Image.Image):
        return Picture(getattr(given, "filename", "") or f"picture {number}", given)
    if hasattr(given, "__array__"):
        return Picture(f"picture {number}", np.asarray(given))
    raise UserError(
        f"picture {number} is of type {type(given).__name__}; it must be a path, an array or a "
        "Pillow image"
    )
