"""The detections of one image, with class names and category ids."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from PIL import Image

from retina_jax.data.deep import PixelScale
from retina_jax.draw import annotate
from retina_jax.errors import UserError
from retina_jax.evaluation import coco
from retina_jax.prediction.pictures import Picture
from retina_jax.training.workdir import Classes
from retina_jax.types import Detections


class Detection(NamedTuple):
    """One detected object."""

    box: tuple[float, float, float, float]
    """``(x1, y1, x2, y2)``, half-open, in pixels of the original image."""
    score: float
    """0 to 1."""
    label: int
    """Number of the class, from 0."""
    name: str
    """Name of the class."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDetections:
    """The detections of one image, highest score first: a sequence of `Detection`.

    Boxes are in pixels of the original image (after EXIF rotation).
    """

    boxes: np.ndarray
    """``[k, 4]`` float64: x1, y1, x2, y2, half-open."""
    scores: np.ndarray
    """``[k]`` float32, 0 to 1."""
    labels: np.ndarray
    """``[k]`` int32: numbers of the classes, from 0."""
    height: int
    """Of the image, pixels."""
    width: int
    classes: Classes
    """Names and COCO category ids of all classes of the network, by label."""
    picture: Picture
    pixel_scale: PixelScale | None = None

    @classmethod
    def of(
        cls,
        detections: Detections,
        size: tuple[int, int],
        classes: Classes,
        picture: Picture,
        pixel_scale: PixelScale | None = None,
    ) -> ImageDetections:
        """``detections`` in pixels of an image of ``size`` (height, width)."""
        boxes = np.asarray(detections.boxes, np.float64).reshape(-1, 4)
        scores = np.asarray(detections.scores, np.float32)
        labels = np.asarray(detections.labels, np.int32)
        return cls(boxes, scores, labels, *map(int, size), classes, picture, pixel_scale)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image, pixels."""
        return self.height, self.width

    @property
    def source(self) -> str:
        """The path of the image; for an image in memory, "image 3", numbered from 0."""
        return self.picture.name

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.classes.names[label] for label in self.labels]

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> ImageDetections: ...
    def __getitem__(self, index):
        """One detection, or those of a slice, such as ``found[:5]``."""
        if isinstance(index, slice):
            return self._of_rows(index)
        x1, y1, x2, y2 = self.boxes[index].tolist()
        label = int(self.labels[index])
        score = float(self.scores[index])
        return Detection((x1, y1, x2, y2), score, label, self.classes.names[label])

    def __iter__(self) -> Iterator[Detection]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        shown = ", ".join(f"{d.name} {d.score:.2f}" for d in list(self)[:5])
        more = ", …" if len(self) > 5 else ""
        size = f"{self.width}×{self.height}"
        return f"<{len(self)} detections in {self.source} ({size}): {shown}{more}>"

    def select(
        self, threshold: float = 0.0, labels: Sequence[int] | None = None
    ) -> ImageDetections:
        """The detections that score above ``threshold``, of the classes ``labels`` (None: all).

        NMS never drops a box because of a lower-scoring one, so detecting with this threshold
        gives the same result.
        """
        kept = self.scores > threshold
        if labels is not None:
            kept &= np.isin(self.labels, list(labels))
        return self._of_rows(kept)

    def _of_rows(self, rows: np.ndarray | slice) -> ImageDetections:
        return dataclasses.replace(
            self, boxes=self.boxes[rows], scores=self.scores[rows], labels=self.labels[rows]
        )

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """COCO results: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score``.

        Category ids are those of the data set that the network was trained on.
        """
        detections = Detections(boxes=self.boxes, scores=self.scores, labels=self.labels)
        return coco.results(image_id, detections, self.classes.ids)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON."""
        return {
            "source": self.source,
            "height": self.height,
            "width": self.width,
            "detections": [
                {
                    "box": list(d.box),
                    "score": d.score,
                    "label": d.label,
                    "name": d.name,
                    "category_id": int(self.classes.ids[d.label]),
                }
                for d in self
            ],
        }

    def pixels(self) -> np.ndarray:
        """The image, RGB uint8 ``[height, width, 3]``; a file is read again."""
        return self.picture.pixels(self.pixel_scale)

    def draw(self) -> Image.Image:
        """The image with boxes, class names and scores; a file is read again.

        An image whose long side is below 320 pixels is enlarged, so that the names are legible.
        """
        return annotate(self.pixels(), self.boxes, self.labels.tolist(), self.names, self.scores)


def labels_of(names: Sequence[str], classes: Classes, named: str) -> list[int]:
    """The labels of class names; `UserError` for an unknown one, with ``named`` as its flag."""
    label_of = {name: label for label, name in enumerate(classes.names)}
    for name in names:
        if name not in label_of:
            near = difflib.get_close_matches(name, classes.names, n=1)
            some = ", ".join(classes.names[:20]) + (", …" if len(classes.names) > 20 else "")
            fix = f"did you mean {near[0]!r}?" if near else f"choose from: {some}"
            raise UserError(f"{named}={name}: the network has no such class; {fix}")
    return [label_of[name] for name in names]
