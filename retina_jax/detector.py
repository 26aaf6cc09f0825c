"""The Python API: `Detector` detects objects in images of any kind."""

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
from retina_jax.progress import Reporter

if TYPE_CHECKING:
    import ml_collections

__all__ = ["Detection", "Detector", "ImageDetections"]

PictureLike = str | Path | np.ndarray | Image.Image
"""A file; an array; an opened image."""


class Detector:
    """A trained RetinaNet that detects objects in images.

        from retina_jax import Detector

        detector = Detector.from_workdir("runs/r50")
        found = detector("street.jpg", threshold=0.5)
        for box, score, label, name in found:
            print(name, score, box)
        found.draw().save("detections.jpg")

    Images are scaled and normalised, and detections are selected, as in evaluation. XLA compiles
    one program per bucket (an input shape in ``data.buckets``), when its first image arrives.
    Several threads may share one detector.
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
        """Usually called through `from_workdir`, `from_weights` or `from_export`.

        Args:
          network: from `retina_jax.prediction.network` or `retina_jax.prediction.artefact`.
          batch_size: images per forward pass; a single image costs as much as a full batch. The
            devices of this host share a batch.
          threshold: keeps detections that score above this; None: ``eval.score_threshold`` of the
            run.
          tile: for images much larger than the network's input: side, in pixels, of square tiles
            whose detections are merged; None: no tiles.
          overlap: overlap of neighbouring tiles, as a fraction of their side, 0 to 1.
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
        cls, workdir: str | Path, *, checkpoint: str | int = "best", **options: Any
    ) -> Detector:
        """A detector from a run's workdir; its data set is not needed.

        Args:
          workdir: the folder that ``retina-jax train --workdir`` wrote.
          checkpoint: "best" by AP (the latest if none was evaluated), "latest", or a step.
          options: of the constructor, such as ``batch_size``.

        Raises `UserError` for a folder that is not the workdir of a trained run.
        """
        return cls(from_workdir(workdir, checkpoint), **options)

    @classmethod
    def from_weights(
        cls,
        path: str | Path,
        config: ml_collections.ConfigDict | str | Path,
        *,
        class_names: Sequence[str] | None = None,
        trust: bool = False,
        **options: Any,
    ) -> Detector:
        """A detector from a weight file: of ``export-weights``, torchvision or Detectron2.

        Config fields that differ from those that the weights were trained with are printed.

        Args:
          path: a .safetensors, .pth or .pkl file; or a name that ``retina-jax import-weights
            --list`` prints, such as "torchvision:retinanet_resnet50_fpn", whose file is fetched
            once, verified and kept in the cache ($RETINA_JAX_CACHE).
          config: describes the network and its input: an experiment's config, its Python file, or
            the workdir of a run.
          class_names: names of the classes; None: those in the file, else "class 0", ….
          trust: use a file without a published hash, and print its SHA-256.
          options: of the constructor, such as ``batch_size``.

        Raises `UserError` if the name is unknown, or the file cannot be read or does not fit the
        config; `RunError` if the network fails.
        """
        report = Reporter.on_stderr()
        network = from_weights(path, config, class_names, report.note, trust, report)
        return cls(network, **options)

    @classmethod
    def from_export(cls, path: str | Path, **options: Any) -> Detector:
        """A detector from a model that ``retina-jax export`` wrote, in StableHLO or ONNX.

        An exported model is code, not data: load it only if you trust its origin. A notice on
        stderr says so. Each file is compared with its SHA-256 in ``model.json`` before it runs.

        The detections are those of the run, up to rounding. The score threshold and NMS are built
        in: ``threshold`` can be raised but not lowered. The model runs on one device. A model with
        a fixed batch size takes any number of images; an incomplete batch costs as much as a full
        one.

        Args:
          path: the folder of the export (all its buckets), or the file of one bucket.
          options: of the constructor; ``batch_size`` defaults to that of the export, or to 1.

        Raises `UserError` if ``path`` is not a complete export, an option contradicts a built-in
        value, or onnxruntime is missing for ONNX.
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
        """Detections score above this."""
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
        """Detects objects in one image, or in many.

        An image is the path of a file; an image that Pillow opened; or an array, ``[h, w, 3]`` RGB,
        ``[h, w, 4]`` RGBA or ``[h, w]`` grey. Arrays are uint8, or uint16 or floating point in the
        value range of the training images (the default is 16 bits, or 0 to 1). Grey, CMYK, 16-bit
        and rotated (EXIF) images are treated as ``retina-jax prepare`` treats them.

        Args:
          pictures: an image; a list of images; the path of a folder, or a pattern with ``*``; or a
            generator of images.
          threshold: keeps only detections that score above this.
          classes: names of the classes to return; None: all.

        Returns:
          The `ImageDetections` of an image; a list of them, in order, for a list, a folder or a
          pattern; an iterator for a generator, which is read a few batches ahead.

        Raises `UserError` for an image that cannot be read (the message names it), a path without
        images, an unknown class, and a threshold below that of the detector.
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
                    f"threshold={threshold} is below that of the detector, {least}; create "
                    f"the detector with threshold={threshold}"
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
    """Whether it is an array (of any library) that holds one image, not several."""
    return hasattr(pictures, "__array__") and np.ndim(pictures) < 4


def _picture(given: Any, number: int) -> Picture:
    if isinstance(given, (str, Path)):
        return Picture(str(given), Path(given).expanduser())
    if isinstance(given, Image.Image):
        return Picture(getattr(given, "filename", "") or f"image {number}", given)
    if hasattr(given, "__array__"):
        return Picture(f"image {number}", np.asarray(given))
    raise UserError(
        f"image {number} is of type {type(given).__name__}; it must be a path, an array or a "
        "Pillow image"
    )
