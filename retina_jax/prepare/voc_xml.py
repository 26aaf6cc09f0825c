"""Read a Pascal VOC tree as `Annotations`."""

from __future__ import annotations

import collections
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from retina_jax.errors import UserError
from retina_jax.prepare.annotations import (
    TURNED,
    Annotations,
    check,
    is_finite,
    refuse,
    turned_hull,
)
from retina_jax.prepare.handling import LeftOut, RecordError
from retina_jax.prepare.linked import check_inside
from retina_jax.prepare.names import BYTE_ORDER_MARK, Folder, clean, is_picture, key, stem_of
from retina_jax.prepare.plain_xml import XMLError, read_xml
from retina_jax.prepare.voc_layout import parts_of

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_ALL_FILES = "annotation files: all in the folder, because there is no ImageSets/Main"
_Key = tuple[Path, str]
"""Folder and stem of an annotation file."""
_USED_OF_OBJECTS = set("name bndbox difficult pose truncated occluded attributes".split())


def read_voc(
    tree: Path,
    splits: dict[str, str],
    follow_links: bool = False,
    left_out: dict[str, LeftOut] | None = None,
) -> dict[str, tuple[Annotations, Path]]:
    """Reads the annotations of the splits of a tree, each with the folder of its images.

    Args:
      splits: maps split names to lists in ImageSets/Main, such as ``{"validation": "val"}``; in a
        tree without lists, to the names of its folders (`parts_of`).
      follow_links: whether to follow links that lead outside the tree.
      left_out: by split, collects the unusable records.

    An image and its annotation file have the same stem, as in the VOC development kit. Objects
    marked difficult become crowds, which training and scoring ignore, as in the kit. VOC pixel
    coordinates start at 1. Raises `UserError` that names the faulty file.
    """
    parts = parts_of(tree, splits)
    for part in parts.values():
        for path in filter(None, (part.annotations, part.pictures, part.listed)):
            check_inside(path, tree, follow_links)
    left_out = left_out or {name: LeftOut() for name in splits}
    folders = {
        path: Folder(path) for part in parts.values() for path in (part.annotations, part.pictures)
    }
    read: dict[_Key, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    members: dict[str, list[_Key]] = {name: [] for name in splits}
    counts = {name: collections.Counter() for name in splits}
    for name, part in parts.items():
        by_stem = _xml_by_stem(folders[part.annotations])
        path = part.listed or part.annotations
        if part.listed is None:
            lines = [(i, stem) for i, stem in enumerate(sorted(by_stem), 1)]
            counts[name][_ALL_FILES] = len(lines)
        else:
            lines = _lines(part.listed)
        for line in lines:
            try:
                stem = _annotation_of(path, line, by_stem, part.annotations, name)
                xml = part.annotations / by_stem[stem][0]
                check_inside(xml, tree, follow_links)
                file = part.annotations, stem
                if file not in read:
                    read[file] = _read(xml, stem, folders[part.pictures], counts[name])
                members[name].append(file)
            except RecordError as error:
                left_out[name].add(error)
    labels = _labels(tree, follow_links)
    names = sorted({o["name"] for _, objects in read.values() for o in objects})
    unknown = [name for name in names if labels and name not in labels]
    if unknown:
        raise UserError(f"{tree / 'labels.txt'}: has no class {unknown[0]!a}; it lists {labels}")
    if not names:
        places = ", ".join(dict.fromkeys(str(part.annotations) for part in parts.values()))
        raise UserError(f"{places}: no objects in {len(read)} files; there is nothing to train on")
    categories = [{"id": i, "name": name} for i, name in enumerate(labels or names, 1)]
    number_of = {category["name"]: category["id"] for category in categories}
    image_ids = {file: i for i, file in enumerate(sorted(read), 1)}
    found = {}
    for split, files in members.items():
        path = parts[split].listed or parts[split].annotations
        if len(set(files)) != len(files):
            (twice, _), *_ = collections.Counter(files).most_common(1)
            raise UserError(f"{path}: lists {twice[1]!r} twice")
        content = {
            "images": [{"id": image_ids[file], **read[file][0]} for file in files],
            "annotations": [
                {
                    "image_id": image_ids[file],
                    "category_id": number_of[o["name"]],
                    "bbox": o["bbox"],
                    "iscrowd": o["iscrowd"],
                }
                for file in files
                for o in read[file][1]
            ],
            "categories": categories,
        }
        if not files:
            lines = left_out[split].lines
            first = f"none of its records can be used; the first: {lines[0]}"
            raise UserError(f"{path}: {first}", lines)
        annotations = check(path, content, left_out[split])
        annotations.counts.update(counts[split])
        found[split] = annotations, parts[split].pictures
    return found


def _xml_by_stem(files: Folder) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in files.files:
        if key(name).endswith(".xml"):
            found.setdefault(stem_of(name), []).append(name)
    return found


def _labels(tree: Path, follow_links: bool) -> list[str]:
    """Reads the class names from labels.txt; empty if the tree has none."""
    path = tree / "labels.txt"
    if not path.is_file():
        return []
    check_inside(path, tree, follow_links)
    names = [" ".join(clean(line).split()) for line in re.split(r"\r\n|\n|\r", _text(path))]
    names = [name for name in names if name]
    if len(set(names)) != len(names):
        raise UserError(f"{path}: lists a class twice")
    return names


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: cannot be read (not a regular file)")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields line numbers and lines of a list in ImageSets/Main."""
    try:
        text = _text(path)
    except UserError as error:
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))[:10])
        advice = f"; --split can be {there}" if there else "; it lists the images, one per line"
        raise UserError(f"{error}{advice}") from None
    lines = [line.strip().strip(BYTE_ORDER_MARK) for line in re.split(r"\r\n|\n|\r", text)]
    if not any(lines):
        raise UserError(f"{path}: lists no images")
    yield from ((number, line) for number, line in enumerate(lines, 1) if line)


def _annotation_of(
    path: Path, line: tuple[int, str], by_stem: dict[str, list[str]], folder: Path, split: str
) -> str:
    """Finds the annotation stem for a line of a list.

    Tries the line itself, then without a final -1, 0 or 1 (the flag in a list of one class), then
    without an image suffix.
    """
    number, text = line
    tried = [text]
    if value := re.fullmatch(r"(.*\S)\s+(-1|0|1)", text):
        tried.append(value[1])
    tried += [name.rpartition(".")[0] for name in tried if is_picture(name)]
    if ".." in re.split(r"[\\/]", text) or text.startswith(("/", "\\")) or "\0" in text:
        raise refuse(path, f"line {number}", f"{text[:120]!a} is not a valid annotation name")
    for name in tried:
        stem = stem_of(f"{name}.xml")
        same = by_stem.get(stem, [])
        if len(same) > 1:
            raise refuse(path, f"line {number}", f"matches {same[0]!a} and {same[1]!a}; rename one")
        if same and not (folder / same[0]).is_file():
            raise RecordError(f"{folder / same[0]}: not a regular file, or a broken link")
        if same:
            return stem
    missing = folder / f"{tried[-1]}.xml"
    shown = "" if tried[-1].isascii() else f" ({tried[-1]!a})"
    raise RecordError(f"{missing}: no such file{shown}, but split {split!r} lists it")


def _read(
    path: Path, stem: str, pictures: Folder, counts: collections.Counter[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads a file as a COCO image without id, and objects with name, bbox and iscrowd."""
    try:
        root = read_xml(path)
    except XMLError as error:
        raise RecordError(f"{path}: not XML ({error})") from None
    if root.tag != "annotation":
        raise RecordError(f"{path}: the root element is <{root.tag[:80]}>, not <annotation>")
    if root.find("filename") is None:
        raise RecordError(f"{path}: missing <filename>")
    own_name = clean(root.findtext("filename").strip())
    image: dict[str, Any] = {"file_name": _picture(path, stem, own_name, pictures)}
    size = root.find("size")
    sides = {} if size is None else {s: _number(path, size, s) for s in ("width", "height")}
    if all((sides.get(side) or 0) >= 1 for side in ("width", "height")):  # some tools write 0
        image |= {side: int(value) for side, value in sides.items()}
    here = collections.Counter()
    objects = [
        _object(path, number, entry, here) for number, entry in enumerate(root.findall("object"), 1)
    ]
    counts.update(here)
    return image, objects


def _picture(path: Path, stem: str, own_name: str, pictures: Folder) -> str:
    """Finds the image with the stem of the annotation, as the kit does, else <filename>.

    The stem comes first because many tools write an outdated <filename>: relative to the folder,
    then anywhere below it.
    """
    same = pictures.pictures_by_stem.get(stem, [])
    if len(same) == 1:
        return same[0]
    if len(same) > 1:
        exact = [name for name in same if key(name).rpartition("/")[2] == key(own_name)]
        if len(exact) != 1:
            raise RecordError(f"{path}: matches images {same[0]!a} and {same[1]!a}; rename one")
        return exact[0]
    elsewhere = pictures.pictures_by_base.get(posixpath.basename(stem), [])
    if len(elsewhere) == 1:
        return elsewhere[0]
    if not own_name or "\0" in own_name:
        raise RecordError(f"{path}: no image {stem!a} in {pictures.path}, and no valid <filename>")
    return own_name


def _object(
    path: Path, number: int, entry: Element, counts: collections.Counter[str]
) -> dict[str, Any]:
    names = entry.findall("name")
    name = " ".join(clean(names[0].text or "").split()) if len(names) == 1 else ""
    if not name:
        raise RecordError(f"{path}: object {number}: must have exactly one <name>")
    record = f"object {number} ({name[:80]!a})"
    boxes = entry.findall("bndbox")
    if len(boxes) != 1:
        problem = "has no <bndbox>" if not boxes else f"has {len(boxes)} <bndbox>; keep one"
        raise refuse(path, record, problem)
    corners = [_number(path, boxes[0], side) for side in ("xmin", "ymin", "xmax", "ymax")]
    if not all(map(is_finite, corners)):
        raise RecordError(f"{path}: {record}: the box is not four finite numbers")
    x1, y1, x2, y2 = corners
    box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
    flags = {}
    for flag in ("difficult", "truncated", "occluded"):
        value = (entry.findtext(flag) or "0").strip().lower()
        flags[flag] = value not in ("0", "0.0", "false", "unspecified", "no", "")
    counts["boxes marked difficult, kept as crowds"] += flags["difficult"]
    for flag in ("truncated", "occluded"):
        counts[f"objects marked {flag}, kept as they are"] += flags[flag]
    for attribute in entry.iterfind("attributes/attribute"):
        label, value = (attribute.findtext(tag, "").strip() for tag in ("name", "value"))
        if label == "rotation" and _NUMBER.fullmatch(value):
            if float(value) % 360:
                box = turned_hull(box, float(value))
                counts[TURNED] += 1
        elif value.lower() not in ("", "0", "false"):
            counts[f"objects with attribute {label[:80]!a}, which is not used"] += 1
    for tag in sorted({child.tag for child in entry} - _USED_OF_OBJECTS):
        counts[f"objects with {tag[:80]!a}, which is not used"] += 1
    return {"name": name, "bbox": box, "iscrowd": int(flags["difficult"])}


def _number(path: Path, parent: Element, tag: str) -> float | None:
    """Returns the number in a child element; None if missing, repeated or not a number."""
    texts = [(child.text or "").strip() for child in parent.findall(tag)]
    if len(texts) != 1 or not _NUMBER.fullmatch(texts[0]):
        return None
    return float(texts[0])
