"""Augmentation of an image and its boxes: turn, scale, crop, flip, colour.

All random draws use the caller's generator. The loader seeds it with (seed, epoch, row), or the
number of times the row was drawn before if images are repeated in an epoch, so batches do not
depend on workers, hosts or restarts. NumPy and OpenCV, on the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from retina_jax.data.plan import Placement, scale_of, scaled_size
from retina_jax.data.transforms import mirror_boxes, resize, scale_boxes, turn, turn_boxes


@dataclasses.dataclass(frozen=True)
class View:
    """How an image is shown: turned, scaled to ``size``, cut to a window, flipped; in this order.

    All sizes are (height, width), pixels.
    """

    size: tuple[int, int]
    """Of the whole image, turned and scaled."""
    corner: tuple[int, int]
    """Row and column of the window's first pixel."""
    window: tuple[int, int]
    """Height and width of the window."""
    quarters: int = 0
    """Turn by this many times 90°, 0 to 3, anticlockwise."""
    mirrored: bool = False
    """Flip horizontally."""

    def turned(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size of an image of ``size`` after the turn."""
        return size[::-1] if self.quarters % 2 else size


def whole(placement: Placement) -> View:
    """The view of a complete image."""
    size = (placement.height, placement.width)
    return View(size, (0, 0), size)


def draw_view(
    rng: np.random.Generator,
    original: tuple[int, int],
    bucket: tuple[int, int],
    short_sides: Sequence[int],
    long_side: int,
    scale_range: tuple[float, float],
    rounding: str = "nearest",
    quarters: int = 0,
) -> View:
    """A random view of an image of ``original`` (height, width).

    Args:
      bucket: height and width of the input.
      short_sides: one of these is drawn (Detectron2: 640, 672, …, 800), and the image is scaled to
        it with `plan.scale_of`.
      long_side: limit of the long side, before ``scale_range``.
      scale_range: limits of a further uniform scale factor (large-scale jitter: 0.1 to 2,
        arXiv:2012.07177). If the result exceeds the bucket, it is cropped at a random position.
      quarters: the image is turned first, so the rules for its sides apply to the turned image: a
        landscape image on its side must fit the height of a landscape bucket.
    """
    original = original[::-1] if quarters % 2 else original
    scale = scale_of(*original, bucket, int(rng.choice(short_sides)), long_side)
    scale *= rng.uniform(*scale_range)
    size = scaled_size(*original, scale, rounding)
    window = tuple(min(side, limit) for side, limit in zip(size, bucket, strict=True))
    corner = tuple(
        int(rng.integers(0, side - shown + 1)) for side, shown in zip(size, window, strict=True)
    )
    return View(size, corner, window, quarters)


def show(image: np.ndarray, view: View, antialias: bool, out: np.ndarray) -> np.ndarray:
    """Writes the window's pixels to the top left of ``out``; returns that part.

    ``out`` is the image's slot in the batch, so pixels are written once, without a copy.
    """
    (top, left), (height, width) = view.corner, view.window
    shown = out[:height, :width]
    image = turn(image, view.quarters)
    if view.size == view.window:  # images are usually enlarged, so flip before scaling
        resize(cv2.flip(image, 1) if view.mirrored else image, height, width, antialias, shown)
        return shown
    window = resize(image, *view.size, antialias)[top : top + height, left : left + width]
    if view.mirrored:
        cv2.flip(window, 1, dst=shown)
    else:
        shown[...] = window
    return shown


def move_boxes(
    boxes: np.ndarray, original: tuple[int, int], view: View, min_visible: float
) -> tuple[np.ndarray, np.ndarray]:
    """Maps xyxy boxes of the original image to the window; returns clipped boxes and a mask.

    The mask is False for a box of which nothing, or less than ``min_visible`` of its area, is in
    the window. ``original``: height and width of the image before the turn.
    """
    top, left = view.corner
    boxes = turn_boxes(boxes, original, view.quarters)
    moved = scale_boxes(boxes, view.turned(original), view.size)
    moved = moved - np.array([left, top, left, top])
    height, width = view.window
    cut = np.clip(moved, 0, np.array([width, height, width, height]))
    before, after = (np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), axis=1) for b in (moved, cut))
    kept = (after > 0) & (after >= min_visible * before - 1e-6)
    return mirror_boxes(cut, width) if view.mirrored else cut, kept


def jitter_colors(
    rng: np.random.Generator, image: np.ndarray, strengths: tuple[float, float, float, float]
) -> np.ndarray:
    """Random brightness, contrast, saturation and hue of an RGB image (0 to 255), in random order.

    The first three are scaled by up to 1 ± their strength; hue is shifted by up to ± its strength,
    as a fraction of the colour circle (0 to 0.5), as in torchvision's ColorJitter.
    """
    pixels = image.astype(np.float32)
    for kind in rng.permutation(4):
        strength = strengths[kind]
        if not strength:
            continue
        amount = rng.uniform(-strength, strength)
        if kind == 0:
            pixels = pixels * (1 + amount)
        elif kind == 1:
            mean = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).mean()
            pixels = mean + (pixels - mean) * (1 + amount)
        elif kind == 2:
            grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
            pixels = grey + (pixels - grey) * (1 + amount)
        else:
            hsv = cv2.cvtColor(pixels / 255, cv2.COLOR_RGB2HSV)  # hue in degrees
            hsv[..., 0] = (hsv[..., 0] + 360 * amount) % 360
            pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
        pixels = np.clip(pixels, 0, 255)
    return (pixels + 0.5).astype(np.uint8) if image.dtype == np.uint8 else pixels
