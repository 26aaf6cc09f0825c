"""The gallery of a report: the images with the largest errors first, as small JPEGs and boxes."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np

from retina_jax.data.data_set import Split
from retina_jax.data.images import decode_small
from retina_jax.evaluation.report_errors import KINDS, STATES, ImageErrors

LARGE, MOST_LARGE = 480, 200
"""Long side, pixels, and number of the images stored large: those with the largest errors."""
SMALL, MOST_IMAGES = 128, 5000
MOST_BOXES = 20
"""Maximum number of detections per image; those with the highest scores are kept."""
_BYTES_LARGE, _BYTES_SMALL, _BYTES_OF_ALL = 22_000, 6_000, 12_000_000
_SETTINGS_LARGE = ((480, 80), (480, 60), (480, 40), (320, 40))
_SETTINGS_SMALL = ((128, 80), (128, 60), (128, 40), (96, 40), (64, 40), (48, 30))
"""Long side and JPEG quality, tried in turn until an image fits its budget of bytes."""
_STEPS = 1000  # boxes are stored in thousandths of the image's width and height


def encode(image: np.ndarray, settings: Sequence[tuple[int, int]], most_bytes: int) -> bytes:
    """A JPEG of an RGB image with the first of ``settings`` that fits, or the last."""
    encoded = b""
    for side, quality in settings:
        scale = side / max(image.shape[:2])
        scaled = image
        if scale < 1:
            height, width = (max(1, round(s * scale)) for s in image.shape[:2])
            scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
        encoded = cv2.imencode(".jpg", scaled[:, :, ::-1], options)[1].tobytes()
        if len(encoded) <= most_bytes:
            break
    return encoded


def thumbnail(split: Split, row: int, large: bool, most_bytes: int) -> str:
    """The image of a row as base64 of a JPEG; "" if it cannot be read."""
    longest, settings = (LARGE, _SETTINGS_LARGE) if large else (SMALL, _SETTINGS_SMALL)
    height, width = (int(v) for v in split.sizes[row])
    image = decode_small(split[row].image, (height, width), longest)
    if image is None:
        return ""
    return base64.b64encode(encode(image, settings, most_bytes)).decode("ascii")


def order_of(errors: Sequence[ImageErrors]) -> list[int]:
    """Positions of the images to show: largest error first; ties in their order."""
    order = np.argsort([-e.error for e in errors], kind="stable")
    return order[:MOST_IMAGES].tolist()


def gallery(
    split: Split,
    errors: Sequence[ImageErrors],
    advance: Callable[[], None] = lambda: None,
    threads: int = 4,
) -> dict[str, Any]:
    """The data for the page's script, as JSON; ``errors`` are by row of ``split``.

    ``advance`` is called after each image. If it raises, so does this function, once the images
    in progress are finished.
    """
    order = order_of(errors)
    small = min(_BYTES_SMALL, _BYTES_OF_ALL // max(len(order), 1))

    def picture(place: int) -> str:
        large = place < MOST_LARGE
        return thumbnail(split, order[place], large, _BYTES_LARGE if large else small)

    images = []
    pool = ThreadPoolExecutor(threads, thread_name_prefix="report")
    try:
        for place, encoded in enumerate(pool.map(picture, range(len(order)))):
            row = order[place]
            images.append(_entry(errors[row], split, row, encoded, place < MOST_LARGE))
            advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return {
        "classes": list(split.class_names), "kinds": list(KINDS), "states": list(STATES),
        "images": images,
    }  # fmt: skip


def _entry(
    errors: ImageErrors, split: Split, row: int, encoded: str, large: bool
) -> dict[str, Any]:
    height, width = (int(v) for v in split.sizes[row])
    kept = slice(MOST_BOXES)
    columns = (errors.labels[kept], errors.kinds[kept], errors.scores[kept], errors.boxes[kept])
    objects = (
        errors.object_labels,
        errors.object_states,
        errors.object_scores,
        errors.object_boxes,
    )
    return {
        "id": errors.image_id, "name": str(split.file_names[row]), "w": width, "h": height,
        "error": round(errors.error, 2), "large": int(large), "jpeg": encoded,
        "objects": pack(*objects, width, height), "detections": pack(*columns, width, height),
        "more": max(0, len(errors.scores) - MOST_BOXES),
    }  # fmt: skip


def pack(
    labels: np.ndarray,
    kinds: np.ndarray,
    scores: np.ndarray,
    boxes: np.ndarray,
    width: int,
    height: int,
) -> list[int]:
    """Seven integers for each box: label, kind, score and x, y, w, h in thousandths."""
    scaled = boxes * _STEPS / [width, height, width, height]
    columns = [labels, kinds, np.round(scores * _STEPS), *np.round(scaled).T]
    return np.stack(columns, 1).astype(int).ravel().tolist() if len(labels) else []
