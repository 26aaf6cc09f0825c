"""Writes detections in the formats COCO, YOLO, Pascal VOC and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from retina_jax.files import atomic_write, write_text
from retina_jax.prediction.record import Line
from retina_jax.training.workdir import Classes

FORMATS = ("coco", "yolo", "voc", "csv")
PER_PICTURE = {"yolo": ("labels", ".txt"), "voc": ("annotations", ".xml")}
"""Formats with one file per image: their folder and suffix."""


def path_of(out: Path, name: str, form: str) -> Path | None:
    """The file of one image; None for a format with one file for all images."""
    if form not in PER_PICTURE:
        return None
    folder, suffix = PER_PICTURE[form]
    return (out / folder / name).with_suffix(suffix)


def write_picture(path: Path, line: Line, form: str, classes: Classes) -> None:
    """Writes the file of one image, in "yolo" or "voc"."""
    write_text(path, _yolo(line) if form == "yolo" else _voc(line, classes))


def write_all(out: Path, form: str, numbered: Iterable[tuple[int, Line]], classes: Classes) -> Path:
    """Writes the files that a format has once; returns the file or folder with the detections.

    ``numbered``: image id and line of each image; read once, and not held in memory.
    """
    if form == "coco":
        return _write_coco(out, numbered, classes)
    if form == "csv":
        return _write_csv(out / "detections.csv", numbered, classes)
    folder = out / PER_PICTURE[form][0]
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in classes.names))
    return folder


def _write_coco(out: Path, numbered: Iterable[tuple[int, Line]], classes: Classes) -> Path:
    """detections.json, COCO results; images.json, which names the images and classes."""
    images = []
    path = out / "detections.json"
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        between = "["
        for image_id, line in numbered:
            size = {"height": line.height, "width": line.width}
            images.append({"id": image_id, "file_name": line.name, **size})
            for box, score, label in zip(line.boxes, line.scores, line.labels, strict=True):
                category = int(classes.ids[label])
                result = {"image_id": image_id, "category_id": category, "bbox": box}
                file.write(between + json.dumps({**result, "score": score}))
                between = ",\n"
        file.write("[]\n" if between == "[" else "]\n")
    categories = [{"id": int(i), "name": name} for i, name in classes.pairs()]
    content = {"images": images, "annotations": [], "categories": categories}
    write_text(out / "images.json", json.dumps(content) + "\n")
    return path


def _write_csv(path: Path, numbered: Iterable[tuple[int, Line]], classes: Classes) -> Path:
    with (
        atomic_write(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        rows = csv.writer(file)
        rows.writerow("file width height class score x1 y1 x2 y2".split())
        for _, line in numbered:
            for (x, y, w, h), score, label in zip(
                line.boxes, line.scores, line.labels, strict=True
            ):
                corners = x, y, round(x + w, 3), round(y + h, 3)
                name = classes.names[label]
                rows.writerow((line.name, line.width, line.height, name, score, *corners))
    return path


def _yolo(line: Line) -> str:
    """Class, centre, size, score: relative to the image."""
    rows = []
    for (x, y, w, h), score, label in zip(line.boxes, line.scores, line.labels, strict=True):
        box = (x + w / 2) / line.width, (y + h / 2) / line.height, w / line.width, h / line.height
        rows.append(f"{label} {' '.join(f'{v:.6f}' for v in box)} {score:.6f}\n")
    return "".join(rows)


def _voc(line: Line, classes: Classes) -> str:
    """VOC counts pixels from 1, and its last pixel belongs to the box."""
    root = ElementTree.Element("annotation")
    folder, _, file = line.name.rpartition("/")
    _add(root, "folder", folder)
    _add(root, "filename", file)
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", line.width), ("height", line.height), ("depth", 3)):
        _add(size, tag, value)
    for (x, y, w, h), score, label in zip(line.boxes, line.scores, line.labels, strict=True):
        entry = ElementTree.SubElement(root, "object")
        _add(entry, "name", classes.names[label])
        _add(entry, "score", score)
        box = ElementTree.SubElement(entry, "bndbox")
        corners = x + 1, y + 1, x + w, y + h
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            _add(box, tag, f"{value:.3f}")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, tag: str, value: object) -> None:
    ElementTree.SubElement(parent, tag).text = str(value)
