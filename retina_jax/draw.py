"""Draws boxes, labels and legends on images."""

from __future__ import annotations

import colorsys
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
_LEAST_FONT = 11  # pixels
_FONTS_PER_SIDE = 60
"""Square root of an image's area, in font sizes: 17 px for 1,024² pixels."""
_MOST_COVERED = 0.12
"""Share of an image that captions may cover, as long as they stay legible."""
_LEAST_SIDE = 320
"""Long side, pixels, below which `annotate` enlarges an image: a name needs about 80 pixels."""


def colour(label: int) -> str:
    """The colour of a class: a fixed function of its label, different for each."""
    if label < len(_PALETTE):
        return _PALETTE[label]
    turn = label - len(_PALETTE)
    hue = turn * 0.618034 % 1  # the golden ratio: each falls into the widest gap of those before
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, (0.9, 0.6)[turn % 2])
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def annotate(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    scores: np.ndarray,
) -> Image.Image:
    """An RGB image with boxes (xyxy, pixels), class names and scores, the highest score on top.

    An image whose long side is below 320 pixels is enlarged by an integer factor, so that names
    are legible.
    """
    scale = max(1, -(-_LEAST_SIDE // max(image.shape[:2])))
    order = np.argsort(scores, kind="stable")
    captions = [f"{names[i]} {scores[i]:.2f}" for i in order]
    return draw_boxes(image, boxes[order], [labels[i] for i in order], captions, scale)


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: list[int], captions: list[str], scale: float
) -> Image.Image:
    """A scaled copy of an RGB image with captioned boxes (xyxy, pixels of ``image``).

    Line widths and font size grow with the copy; the font shrinks if many captions would cover it.
    Captions are above their box, or at its top if there is no room. They never leave the image: a
    caption that is too long gets a smaller font.
    """
    height, width = image.shape[:2]
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    picture = Image.fromarray(_scaled(image, *size))
    draw = ImageDraw.Draw(picture)
    letters = _letters(size[0] * size[1], sum(map(len, captions)))
    line = max(2, round(letters / 7))
    placed = list(zip(boxes * scale, labels, captions, strict=True))
    for box, label, _ in placed:
        x1, y1, x2, y2 = (float(v) for v in box)
        corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        draw.rectangle(corners, outline=colour(label), width=line)
    for box, label, caption in placed:  # on top of all lines
        if caption:
            _draw_tag(draw, float(box[0]), float(box[1]), label, caption, letters, size)
    return picture


def _letters(area: int, characters: int) -> int:
    """Font size for an image of ``area`` pixels with captions of that many characters."""
    letters = area**0.5 / _FONTS_PER_SIDE
    if characters:  # each covers about 0.55 by 1.35 letters
        letters = min(letters, (_MOST_COVERED * area / (0.75 * characters)) ** 0.5)
    return max(_LEAST_FONT, round(letters))


def _draw_tag(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    label: int,
    caption: str,
    letters: int,
    size: tuple[int, int],
) -> None:
    """A caption on its class's colour, for a box whose top left corner is (x, y)."""
    margin = max(2, round(letters / 6))
    while True:
        font = ImageFont.load_default(size=letters)
        left, top, right, bottom = draw.textbbox((0, 0), caption, font=font)
        wide, high = right - left + 2 * margin, bottom - top + 2 * margin
        if (wide <= size[1] and high <= size[0]) or letters <= 4:
            break
        letters, margin = letters - 1, 1
    # whole pixels: Pillow cuts off the top of letters that begin at a fraction above the image
    x = max(0, min(round(x), size[1] - wide))
    y = max(0, min(round(y - high if y >= high else y), size[0] - high))
    draw.rectangle((x, y, x + wide - 1, y + high - 1), fill=colour(label))
    draw.text((x + margin - left, y + margin - top), caption, fill=_ink(label), font=font)


def _ink(label: int) -> str:
    """White, or black on a light colour."""
    code = colour(label)
    red, green, blue = (int(code[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else "white"


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
