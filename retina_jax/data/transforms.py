"""Transforms of one image and its boxes on the host (NumPy and OpenCV)."""

from __future__ import annotations

import cv2
import numpy as np

cv2.setNumThreads(1)  # the loader processes many images in parallel
_ROTATIONS = {
    1: cv2.ROTATE_90_COUNTERCLOCKWISE,
    2: cv2.ROTATE_180,
    3: cv2.ROTATE_90_CLOCKWISE,
}
"""OpenCV's name of a turn, by its number of quarters anticlockwise."""


def resize(
    image: np.ndarray,
    height: int,
    width: int,
    antialias: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Bilinear resize with half-pixel centres, in the dtype of ``image``; into ``out`` if given.

    ``antialias`` uses Pillow, whose filter widens when an image shrinks (Detectron2; uint8 only).
    Otherwise uses OpenCV, which reads the four nearest pixels (like torchvision on tensors) and is
    several times faster.
    """
    if image.shape[:2] != (height, width) and not antialias:
        return cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
    if image.shape[:2] != (height, width):
        from PIL import Image

        shrunk = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        image = np.asarray(shrunk)
    if out is None:
        return image
    out[...] = image
    return out


def scale_boxes(
    boxes: np.ndarray, from_size: tuple[int, int], to_size: tuple[int, int]
) -> np.ndarray:
    """Scales xyxy boxes from an image of ``from_size`` (height, width) to ``to_size``."""
    y, x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return boxes * np.array([x, y, x, y])


def mirror_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Flips xyxy boxes horizontally in an image of ``width`` pixels."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([width - x2, y1, width - x1, y2], axis=1)


def turn(image: np.ndarray, quarters: int) -> np.ndarray:
    """Turns an image by ``quarters`` × 90°, 0 to 3, anticlockwise, like `numpy.rot90`."""
    return cv2.rotate(image, _ROTATIONS[quarters]) if quarters else image


def turn_boxes(boxes: np.ndarray, size: tuple[int, int], quarters: int) -> np.ndarray:
    """Turns xyxy boxes with an image of ``size`` (height, width) before `turn`."""
    if not quarters:
        return boxes
    height, width = size
    x1, y1, x2, y2 = boxes.T
    if quarters == 1:
        x1, y1, x2, y2 = y1, width - x2, y2, width - x1
    elif quarters == 2:
        x1, y1, x2, y2 = width - x2, height - y2, width - x1, height - y1
    else:
        x1, y1, x2, y2 = height - y2, x1, height - y1, x2
    return np.stack([x1, y1, x2, y2], axis=1)
