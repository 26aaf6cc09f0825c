"""Pictures: ground truth beside detections, and the curves of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from retina_jax.boxes import coco_xywh_to_xyxy
from retina_jax.data.sources import Split
from retina_jax.data.transforms import decode_image, resize

_PALETTE = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6",
    "#808000", "#000075", "#42a5f5", "#800000",
)  # fmt: skip
_PANEL = 320  # pixels, the long side of one picture
_GAP = 8
_TITLE = 22
_CAPTION_COLOUR = "#333333"


def colour(label: int) -> str:
    """The colour of a class, for ever the same."""
    return _PALETTE[label % len(_PALETTE)]


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: list[int], captions: list[str], scale: float
) -> Image.Image:
    """An RGB picture, scaled, with xyxy boxes (pixels of ``image``) and a tag on each."""
    height, width = image.shape[:2]
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    picture = Image.fromarray(np.ascontiguousarray(resize(image, *size)))
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


def _pair(
    split: Split, row: int, found: list[dict[str, Any]], label_of: dict[int, int]
) -> Image.Image:
    """Ground truth on the left, detections on the right."""
    example = split[row]
    image = decode_image(example.image)
    scale = _PANEL / max(image.shape[:2])
    truth_names = [
        split.class_names[label] + (" (crowd)" if crowd else "")
        for label, crowd in zip(example.labels, example.is_crowd, strict=True)
    ]
    many = len(found) > 12 or len(truth_names) > 12  # tags would hide what they name
    truth = draw_boxes(
        image,
        example.boxes,
        example.labels.tolist(),
        [""] * len(truth_names) if many else truth_names,
        scale,
    )
    found = sorted(found, key=lambda d: d["score"])  # the best on top
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
    draw.text((2, 3), f"image {example.image_id}: ground truth", fill=_CAPTION_COLOUR, font=font)
    draw.text((_PANEL + _GAP + 2, 3), "detections", fill=_CAPTION_COLOUR, font=font)
    panel.paste(truth, (0, _TITLE))
    panel.paste(detections, (_PANEL + _GAP, _TITLE))
    return panel


def draw_split(
    split: Split,
    detections: list[dict[str, Any]],
    path: Path,
    count: int,
    least_score: float = 0.4,
) -> None:
    """A sheet of ``count`` images spread over the split, each as a pair, to ``path`` (PNG).

    ``detections`` are COCO results; those under ``least_score`` are not drawn.
    """
    count = min(count, len(split))
    rows = [int(i) for i in np.linspace(0, len(split) - 1, count).round()]
    by_image: dict[int, list[dict[str, Any]]] = {}
    for detection in detections:
        if detection["score"] >= least_score:
            by_image.setdefault(detection["image_id"], []).append(detection)
    label_of = {category_id: i for i, category_id in enumerate(split.category_ids)}
    pairs = [_pair(split, r, by_image.get(int(split.image_ids[r]), []), label_of) for r in rows]
    columns = min(2, len(pairs))
    cell_width = max(p.width for p in pairs) + 2 * _GAP
    cell_height = max(p.height for p in pairs) + _GAP
    legend = _legend(split, cell_width * columns)
    lines = math.ceil(len(pairs) / columns)
    sheet = Image.new("RGB", (cell_width * columns, legend.height + cell_height * lines), "white")
    sheet.paste(legend, (0, 0))
    for i, pair in enumerate(pairs):
        line, column = divmod(i, columns)
        sheet.paste(pair, (column * cell_width + _GAP, legend.height + line * cell_height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")


def _legend(split: Split, width: int) -> Image.Image:
    """Class names in their colours, in as many lines as they need."""
    font = ImageFont.load_default(size=13)
    places, x, y = [], _GAP, _GAP
    for label, name in enumerate(split.class_names):
        length = int(font.getlength(name)) + 28
        if x + length > width and x > _GAP:
            x, y = _GAP, y + 20
        places.append((x, y, label, name))
        x += length
    legend = Image.new("RGB", (width, y + 24), "white")
    draw = ImageDraw.Draw(legend)
    for x, y, label, name in places:
        draw.rectangle((x, y + 2, x + 11, y + 13), fill=colour(label))
        draw.text((x + 16, y), name, fill=_CAPTION_COLOUR, font=font)
    return legend


def _or_gap(value: float | None) -> float:
    return math.nan if value is None else value  # None: all steps since the last log were skipped


def draw_curves(workdir: Path) -> Path | None:
    """Losses, learning rate and AP over steps, from the files of a run; None without any."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    if not log:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, rate, precision = figure.subplots(1, 3)
    steps = [entry["step"] for entry in log]
    for name in ("loss", "loss_classification", "loss_box"):
        values = [_or_gap(entry[name]) for entry in log]
        loss.plot(steps, values, label=name)
    loss.set(title="loss", xlabel="step", ylim=(0, None))
    loss.legend()
    rate.plot(steps, [_or_gap(entry["learning_rate"]) for entry in log])
    rate.set(title="learning rate", xlabel="step", ylim=(0, None))
    scores = [
        json.loads(p.read_text())
        for p in workdir.glob("eval/*/metrics.json")
        if p.parent.name.isdigit()
    ]
    scores.sort(key=lambda s: s["step"])
    for name in ("AP", "AP50", "AP75"):
        precision.plot([s["step"] for s in scores], [s[name] for s in scores], "o-", label=name)
    precision.set(title="validation", xlabel="step", ylim=(0, 1))
    if scores:
        precision.legend()
    path = workdir / "curves.png"
    figure.savefig(path, dpi=110)
    return path
