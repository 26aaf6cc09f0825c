"""Read a YOLO tree (Ultralytics layout) as `Annotations`."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from retina_jax.data.images import PictureError, upright_size
from retina_jax.errors import UserError
from retina_jax.prepare.annotations import Annotations, check
from retina_jax.prepare.handling import LeftOut, RecordError
from retina_jax.prepare.linked import check_inside
from retina_jax.prepare.names import BYTE_ORDER_MARK, Folder, clean, is_picture, stem_of
from retina_jax.prepare.plain_yaml import YAMLError, parse_yaml
from retina_jax.prepare.yolo_labels import read_labels
from retina_jax.prepare.yolo_layout import (
    SETTINGS,
    label_folder,
    settings_in,
    settings_without_yaml,
)

SPLITS = {"train": "train", "val": "validation", "test": "test"}
_READERS = 8
_OTHER_TEXTS = {"classes", "notes", "readme", "license", "train", "val", "valid", "test"}
"""Stems of .txt files that may lie among labels."""


def read_yolo(
    tree: Path, follow_links: bool = False, left_out: Mapping[str, LeftOut] | None = None
) -> dict[str, tuple[Annotations, Path]]:
    """Returns the annotations and the image folder of each split that data.yaml names.

    A tree without data.yaml is read as `settings_without_yaml` describes it.

    A split is a folder of images, a list of folders, or a .txt file that lists images. If there are
    several folders, file names are relative to the tree. An image without a label file has no
    boxes, as in Ultralytics. Category ids are the YOLO class numbers, which start at 0.
    ``follow_links`` allows links that lead outside the tree. ``left_out``, by split, collects the
    unusable records. Raises `UserError` that names the faulty file.
    """
    settings_path = settings_in(tree) or tree / SETTINGS[0]
    check_inside(settings_path, tree, follow_links)
    without_yaml = None if settings_path.exists() else settings_without_yaml(tree)
    settings_path, settings = without_yaml or (settings_path, _settings(settings_path))
    names = _class_names(settings_path, settings)
    keypoints = _keypoint_numbers(settings_path, settings)
    found = {}
    for key, split in SPLITS.items():
        if key == "test" and found and settings.get(key) and not _has_place(tree, settings, key):
            lacking = "splits in data.yaml that the tree does not contain (test), left out"
            next(iter(found.values()))[0].counts[lacking] += 1  # as Roboflow's export often is
        elif settings.get(key):
            pictures, complete = _pictures(tree, settings_path, settings, key, follow_links)
            bad = left_out[split] if left_out else LeftOut()
            root = next(iter(pictures)) if complete and len(pictures) == 1 else tree
            images: list[tuple[Path, Path | None]] = []
            for folder, files in pictures.items():
                images += _joined(folder, files, tree, follow_links, complete, bad)
            found[split] = (_read_split(images, root, names, keypoints, bad), root)
    if not found:
        raise UserError(f"{settings_path}: names no folder for train, val or test")
    return found


def _settings(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file")
    try:
        settings = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(
            f"--tree {path.parent} has no data.yaml; give the folder that contains it, or create "
            "one: 'train: FOLDER' and 'names: [...]' (or classes.txt, one name per line)"
        ) from None
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: not a data.yaml (a {type(settings).__name__}, not a mapping)")
    return settings


def _class_names(path: Path, settings: dict[str, Any]) -> list[str]:
    """Reads ``names``, which is a list or maps 0, 1, … to names."""
    names, count = settings.get("names"), settings.get("nc")
    if isinstance(names, dict):
        numbers = {int(n): name for n, name in names.items() if re.fullmatch("[0-9]{1,9}", n)}
        if sorted(numbers) != list(range(len(names))):
            raise UserError(f"{path}: names must number the classes from 0 to {len(names) - 1}")
        names = [numbers[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: has no list 'names' of the classes")
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise UserError(f"{path}: name {i} is not a string; put it in quotes")
    names = [" ".join(clean(name).split()) for name in names]
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            raise UserError(f"{path}: name {i} ({name!r}) is empty or a duplicate")
    if isinstance(count, str) and count != str(len(names)):
        raise UserError(f"{path}: nc is {count[:80]!a}, but names has {len(names)} classes")
    return names


def _keypoint_numbers(path: Path, settings: dict[str, Any]) -> int:
    """Count of numbers after each box from kpt_shape: keypoints times 2 or 3; 0 without it."""
    shape = settings.get("kpt_shape")
    if shape is None:
        return 0
    sides = shape if isinstance(shape, list) else []
    if len(sides) != 2 or not all(re.fullmatch("[0-9]{1,6}", str(side)) for side in sides):
        raise UserError(f"{path}: kpt_shape must be two numbers, such as [17, 3]")
    return int(sides[0]) * int(sides[1])


def _pictures(
    tree: Path, path: Path, settings: dict[str, Any], key: str, follow_links: bool
) -> tuple[dict[Path, list[str]], bool]:
    """Finds the images of a split by folder, inside the tree, even if data.yaml has foreign paths.

    Also returns whether these are all images in the folders, which is not the case for a .txt file.
    """
    values = settings[key]
    values = values if isinstance(values, list) else [values]
    start = settings.get("path") or ""
    if not all(isinstance(v, str) and v and "\0" not in v for v in [*values, start or "."]):
        raise UserError(f"{path}: {key} must name folders of images")
    found: dict[Path, list[str]] = {}
    complete = True
    for value in values:
        place = _place(tree, start, value)
        if place is None:
            raise UserError(f"{path}: {key}: {value!r} is not a folder inside --tree {tree}")
        if place.is_file():
            complete = False
            for picture in _listed(tree, place, follow_links):
                found.setdefault(picture.parent, []).append(picture.name)
            continue
        files = sorted(p.name for p in place.iterdir() if is_picture(p.name) and p.is_file())
        if not files:
            raise UserError(f"{place}: contains no images; images in subfolders are not read")
        found[place] = files
    return found, complete


def _has_place(tree: Path, settings: dict[str, Any], key: str) -> bool:
    value = settings[key]
    return not isinstance(value, str) or bool(_place(tree, settings.get("path") or "", value))


def _place(tree: Path, start: str, value: str) -> Path | None:
    """Finds a folder or .txt file from data.yaml inside the tree; None if there is none."""
    value, start = value.replace("\\", "/"), start.replace("\\", "/")
    below = [part for part in Path(value).parts if part not in ("..", ".", "/")]
    for place in (tree / start / value, tree.joinpath(*below)):
        try:
            usable = place.is_dir() or (place.suffix == ".txt" and place.is_file())
        except OSError:  # a name too long for any file
            continue
        if usable and place.resolve().is_relative_to(tree.resolve()):
            return place
    return None


def _listed(tree: Path, path: Path, follow_links: bool) -> list[Path]:
    """Reads a .txt list of images in the tree; its paths may start with folders above the tree."""
    check_inside(path, tree, follow_links)
    try:
        lines = re.split(r"\r\n|\n|\r", path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    files, found = Folder(tree), []
    for number, line in enumerate(lines, 1):
        name = line.strip(BYTE_ORDER_MARK + " \t").replace("\\", "/").removeprefix("./")
        if not name:
            continue
        parts = [part for part in name.split("/") if part not in ("", ".", "..")]
        tails = ("/".join(parts[i:]) for i in range(len(parts)))
        same = next((f for tail in tails if (f := files.find(tail))), [])
        if len(same) != 1:
            raise UserError(
                f"{path}: line {number}: {name[:120]!a} does not match exactly one file in {tree}"
            )
        found.append(tree / same[0])
    if len(set(found)) != len(found):
        (twice, _), *_ = collections.Counter(found).most_common(1)
        raise UserError(f"{path}: lists {twice} twice")
    if not found:
        raise UserError(f"{path}: lists no images")
    return found


def _joined(
    folder: Path,
    files: list[str],
    tree: Path,
    follow_links: bool,
    complete: bool,
    left_out: LeftOut,
) -> list[tuple[Path, Path | None]]:
    """Pairs each image with the label file of the same stem, or None.

    ``complete``: ``files`` has all images of the folder, so every label file must match one.
    """
    of_labels = label_folder(folder, tree)
    if not of_labels.is_dir():
        raise UserError(f"{of_labels}: no such folder; put the labels of {folder} there")
    for path in (*folder.iterdir(), *of_labels.iterdir()):
        check_inside(path, tree, follow_links)
    pictures: dict[str, str] = {}
    for name in files:
        stem = stem_of(name)
        if stem in pictures:
            raise UserError(
                f"{folder}: {pictures[stem]!a} and {name!a} both use {stem}.txt; rename one"
            )
        pictures[stem] = name
    labels: dict[str, Path] = {}
    for path in sorted(of_labels.iterdir()):
        if path.suffix.lower() == ".txt":
            stem = stem_of(path.name)
            if stem in labels:
                raise UserError(f"{path} and {labels[stem].name!a} label the same image; keep one")
            labels[stem] = path
    astray = sorted(labels.keys() - pictures.keys()) if complete else []
    astray = [stem for stem in astray if stem.lower() not in _OTHER_TEXTS]
    for stem in astray:
        other = [p.name for p in sorted(folder.glob(f"{_escaped(stem)}.*")) if p.suffix != ".txt"]
        format_note = f"; convert {other[0]!a} to PNG or JPEG" if other else ""
        left_out.add(
            RecordError(f"{labels[stem]}: no image with this name in {folder}{format_note}")
        )
    return [(folder / name, labels.get(stem)) for stem, name in pictures.items()]


def _escaped(name: str) -> str:
    """Escapes ``name`` for use in a glob pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _read_split(
    pairs: list[tuple[Path, Path | None]],
    root: Path,
    names: list[str],
    keypoint_numbers: int,
    left_out: LeftOut,
) -> Annotations:
    counts: collections.Counter[str] = collections.Counter()
    with ThreadPoolExecutor(_READERS) as threads:
        sizes = list(threads.map(_size, (picture for picture, _ in pairs)))
    images, annotations = [], []
    for number, ((picture, labels), size) in enumerate(zip(pairs, sizes, strict=True), 1):
        try:
            if isinstance(size, RecordError):
                raise size
            rows = read_labels(labels, len(names), keypoint_numbers, counts) if labels else []
        except RecordError as error:
            left_out.add(error)
            continue
        width, height = size
        name = picture.relative_to(root).as_posix()
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for row in rows:
            x, y, w, h = row.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": row.label,
                    "bbox": [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height],
                }
            )
    if not images:
        raise UserError(f"{root}: none of its images can be used", left_out.lines[:20])
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    found = check(root, content, left_out)
    found.counts.update(counts)
    return found


def _size(path: Path) -> tuple[int, int] | RecordError:
    try:
        return upright_size(path)
    except PictureError as error:
        return RecordError(f"{path}: {error}")
    except OSError as error:
        return RecordError(f"{path}: cannot be read ({error.strerror})")
