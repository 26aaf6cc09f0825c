"""Draws boxes, labels and legends on images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PALETTE = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6",
    "#808000", "#000075", "#42a5f5", "#800000",
)  # fmt: skip
CAPTION_COLOUR = "#333333"
_GAP = 8  # pixels


def colour(label: int) -> str:
    """The colour of a class: a fixed function of its label."""
    return _PALETTE[label % len(_PALETTE)]


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: list[int], captions: list[str], scale: float
) -> Image.Image:
    """A scaled copy of an RGB image with captioned boxes (xyxy, pixels of ``image``)."""
    height, width = image.shape[:2]
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    picture = Image.fromarray(_scaled(image, *size))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=11)
    for box, label, caption in zip(boxes * scale, labels, captions, strict=True):
        x1, y1, x2, y2 = (float(v) for v in box)
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour(label), width=2)
        if caption:
            left, top, right, bottom = draw.textbbox((0, 0), caption, font=font)
            tag_width, tag_height = right - left + 4, bottom - top + 4
            x = min(max(x1, 0), size[1] - tag_width)
            y = y1 - tag_height if y1 >= tag_height else y1
            draw.rectangle((x, y, x + tag_width, y + tag_height), fill=colour(label))
            draw.text((x + 2 - left, y + 2 - top), caption, fill="white", font=font)
    return picture


def _scaled(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def draw_legend(class_names: Sequence[str], width: int) -> Image.Image:
    """A legend of class names and colours, wrapped to ``width`` pixels."""
    font = ImageFont.load_default(size=13)
    places, x, y = [], _GAP, _GAP
    for label, name in enumerate(class_names):
        length = int(font.getlength(name)) + 28
        if x + length > width and x > _GAP:
            x, y = _GAP, y + 20
        places.append((x, y, label, name))
        x += length
    legend = Image.new("RGB", (width, y + 24), "white")
    draw = ImageDraw.Draw(legend)
    for x, y, label, name in places:
        draw.rectangle((x, y + 2, x + 11, y + 13), fill=colour(label))
        draw.text((x + 16, y), name, fill=CAPTION_COLOUR, font=font)
    return legend
