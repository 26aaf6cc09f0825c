"""Draws contact sheets: ground truth next to detections."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from retina_jax.data.data_set import Example, Split
from retina_jax.data.images import decode_image
from retina_jax.draw import CAPTION_COLOUR, draw_boxes, draw_legend
from retina_jax.files import atomic_write
from retina_jax.ops.boxes import coco_xywh_to_xyxy

_PANEL = 320  # pixels, the long side of one image
_GAP = 8
_TITLE = 22


def _pair(
    split: Split,
    example: Example,
    image: np.ndarray,
    found: list[dict[str, Any]],
    label_of: dict[int, int],
) -> Image.Image:
    """Ground truth on the left, detections on the right."""
    scale = _PANEL / max(image.shape[:2])
    truth_names = [
        split.class_names[label] + (" (crowd)" if crowd else "")
        for label, crowd in zip(example.labels, example.is_crowd, strict=True)
    ]
    many = len(found) > 12 or len(truth_names) > 12  # captions would hide the objects
    truth = draw_boxes(
        image,
        example.boxes,
        example.labels.tolist(),
        [""] * len(truth_names) if many else truth_names,
        scale,
    )
    found = sorted(found, key=lambda d: d["score"])  # draw the best last, on top
    labels = [label_of[d["category_id"]] for d in found]
    boxes = coco_xywh_to_xyxy(np.array([d["bbox"] for d in found], np.float64).reshape(-1, 4))
    captions = [
        f"{d['score']:.2f}" if many else f"{split.class_names[label]} {d['score']:.2f}"
        for d, label in zip(found, labels, strict=True)
    ]
    detections = draw_boxes(image, boxes, labels, captions, scale)
    panel = Image.new("RGB", (2 * _PANEL + _GAP, detections.height + _TITLE), "white")
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(size=13)
    draw.text((2, 3), f"image {example.image_id}: ground truth", fill=CAPTION_COLOUR, font=font)
    draw.text((_PANEL + _GAP + 2, 3), "detections", fill=CAPTION_COLOUR, font=font)
    panel.paste(truth, (0, _TITLE))
    panel.paste(detections, (_PANEL + _GAP, _TITLE))
    return panel


def draw_pairs(
    split: Split,
    detections: list[dict[str, Any]],
    count: int,
    min_score: float = 0.4,
    note: Callable[[str], None] | None = None,
) -> list[tuple[int, Image.Image]]:
    """Draws ``count`` images, evenly spread over the split; returns their ids and drawings.

    Each drawing, 648 px wide, shows an image twice: with ground truth and with detections.
    ``detections`` are COCO results; those that score below ``min_score`` are not drawn. An image
    that cannot be read is left out, and ``note`` is called with a line; without ``note``, the error
    is raised.
    """
    count = min(count, len(split))
    rows = [int(i) for i in np.linspace(0, len(split) - 1, count).round()]
    by_image: dict[int, list[dict[str, Any]]] = {}
    for detection in detections:
        if detection["score"] >= min_score:
            by_image.setdefault(detection["image_id"], []).append(detection)
    label_of = {category_id: i for i, category_id in enumerate(split.category_ids)}
    pairs = []
    for row in rows:
        image_id = int(split.image_ids[row])
        try:
            example = split[row]
            image = decode_image(example.image)
            if image is None:
                raise ValueError("it cannot be decoded")
        except Exception as error:  # whatever ArrayRecord and OpenCV make of damaged files
            if note is None:
                raise
            note(f"image {image_id} is not drawn: {error}")
            continue
        found = by_image.get(image_id, [])
        pairs.append((image_id, _pair(split, example, image, found, label_of)))
    return pairs


def write_sheet(
    pairs: Sequence[tuple[int, Image.Image]], class_names: Sequence[str], path: Path
) -> None:
    """Writes the drawings of `draw_pairs` to ``path`` (PNG), below a legend; nothing if none."""
    if not pairs:
        return
    pairs = [picture for _, picture in pairs]
    columns = min(2, len(pairs))
    cell_width = max(p.width for p in pairs) + 2 * _GAP
    cell_height = max(p.height for p in pairs) + _GAP
    legend = draw_legend(class_names, cell_width * columns)
    lines = math.ceil(len(pairs) / columns)
    sheet = Image.new("RGB", (cell_width * columns, legend.height + cell_height * lines), "white")
    sheet.paste(legend, (0, 0))
    for i, pair in enumerate(pairs):
        line, column = divmod(i, columns)
        sheet.paste(pair, (column * cell_width + _GAP, legend.height + line * cell_height))
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")
