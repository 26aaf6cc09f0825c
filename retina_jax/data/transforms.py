"""What happens to one picture and its boxes between disk and batch (NumPy and OpenCV)."""

from __future__ import annotations

import cv2
import numpy as np

cv2.setNumThreads(1)  # the loader runs many pictures at once


def resize(
    image: np.ndarray,
    height: int,
    width: int,
    antialias: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Bilinear with half-pixel centres, uint8 or float32 as ``image``; into ``out`` if given.

    ``antialias``: by Pillow, whose filter widens as a picture shrinks (Detectron2; uint8 alone);
    else by OpenCV, which reads the four nearest pixels (torchvision's tensors), several times as
    fast.
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
    """xyxy of a picture of ``from_size`` (height, width) to one of ``to_size``."""
    y, x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return boxes * np.array([x, y, x, y])


def mirror_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """xyxy in a picture of ``width`` pixels that is mirrored left to right."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([width - x2, y1, width - x1, y2], axis=1)
