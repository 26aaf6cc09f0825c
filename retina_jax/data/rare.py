"""Which rows training shows, and how often: images of rare classes may be repeated."""

from __future__ import annotations

import dataclasses

import numpy as np

from retina_jax.data.data_set import Split
from retina_jax.errors import UserError

_MOST_NAMED = 8
"""Classes that `Repeats.describe` names."""


def shown_rows(split: Split, drop_empty: bool) -> np.ndarray:
    """Bool ``[rows]``: the rows that training shows; with ``drop_empty``, those with boxes.

    Crowds do not count as boxes. Raises `UserError` if no row remains.
    """
    shown = split.object_counts > 0 if drop_empty else np.ones(len(split), bool)
    if not shown.any():
        raise UserError(
            f"config.data.drop_empty=True excludes all images of {split.label()}; set "
            "--config.data.drop_empty=False"
        )
    return shown


@dataclasses.dataclass(frozen=True)
class Repeats:
    """How often images are shown per epoch on average, by `repeats`."""

    threshold: float
    class_names: tuple[str, ...]
    of_class: np.ndarray
    """``[classes]``: 1 or more; 1 for a class without images."""
    of_row: np.ndarray
    """``[rows]``: 1 or more; the largest factor of the image's classes."""
    shown: np.ndarray
    """Bool ``[rows]``: the rows that training shows."""

    def describe(self) -> str:
        """The repeated classes and the length of an epoch, in one line."""
        setting = f"data.repeat_rare={self.threshold:g}"
        rare = [int(c) for c in np.argsort(-self.of_class, kind="stable") if self.of_class[c] > 1]
        if not rare:
            return f"{setting}: every class is in enough of the images; no image is repeated"
        named = [f"{self.class_names[c]} {self.of_class[c]:.3g} times" for c in rare[:_MOST_NAMED]]
        if len(rare) > _MOST_NAMED:
            named.append(f"… ({len(rare)} classes)")
        images, total = int(self.shown.sum()), round(float(self.of_row[self.shown].sum()))
        return (
            f"{setting} repeats images of rare classes: {', '.join(named)}; an epoch has {total} "
            f"images instead of {images}"
        )


def repeats(split: Split, threshold: float, shown: np.ndarray) -> Repeats:
    """LVIS's repeat factors (arXiv:1908.03195, appendix B.2; Detectron2).

    A class c in a share f(c) of the images has the factor r(c) = max(1, √(threshold / f(c))). That
    of an image is the largest of its classes, or 1 without any. Crowds do not count, because
    training ignores them (Detectron2 counts them; LVIS has none).

    Args:
      shown: bool ``[rows]``; f(c) counts only these images.
    """
    rows, labels = split.objects()
    pairs = np.unique(np.stack([rows, labels]), axis=1) if len(rows) else np.zeros((2, 0), int)
    rows, labels = pairs[:, shown[pairs[0]]]
    images = np.bincount(labels, minlength=len(split.class_names))
    share = images / shown.sum()
    of_class = np.where(images > 0, np.sqrt(threshold / np.maximum(share, 1e-300)), 1)
    of_class = np.maximum(1, of_class)
    of_row = np.ones(len(split))
    np.maximum.at(of_row, rows, of_class[labels])
    return Repeats(threshold, split.class_names, of_class, of_row, shown)
