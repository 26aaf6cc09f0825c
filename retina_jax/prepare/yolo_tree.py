"""A YOLO tree (Ultralytics' layout) to `Annotations`, by hotcoco's reader."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import yaml

from retina_jax.data.images import PictureError, header_size
from retina_jax.errors import UserError
from retina_jax.prepare.annotations import Annotations, check
from retina_jax.prepare.linked import check_inside, named_in, pictures_by_stem

SPLITS = {"train": "train", "val": "validation", "test": "test"}
_READERS = 8


def read_yolo(tree: Path, follow_links: bool = False) -> dict[str, tuple[Annotations, Path]]:
    """Each split that data.yaml names: its annotations, and the folder of its pictures.

    A picture without a label file has no boxes, as in Ultralytics. Category ids are YOLO's own
    class numbers, from 0. ``follow_links``: out of the tree, too. `UserError` names the file that
    is wrong.
    """
    settings_path = tree / "data.yaml"
    check_inside(settings_path, tree, follow_links)
    settings = _settings(settings_path)
    names = _class_names(settings_path, settings.get("names"))
    found = {}
    for key, split in SPLITS.items():
        if settings.get(key):
            folder = _picture_folder(tree, settings_path, settings, key)
            labels = _label_folder(folder, tree)
            for path in (*folder.iterdir(), *(labels.iterdir() if labels.is_dir() else ())):
                check_inside(path, tree, follow_links)
            found[split] = (_read_split(folder, labels, names), folder)
    if not found:
        raise UserError(f"{settings_path}: names no folder of train, val or test")
    return found


def _settings(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"--tree {path.parent} has no data.yaml; give the folder that holds it"
        ) from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: not a data.yaml (a {type(settings).__name__}, not a mapping)")
    return settings


def _class_names(path: Path, names: Any) -> list[str]:
    """``names`` as a list, or as a mapping of 0, 1, … to names."""
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(f"{path}: names must number its classes 0 to {len(names) - 1}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: no list 'names' of the classes")
    names = [" ".join(str(name).split()) for name in names]
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            raise UserError(f"{path}: name {i} ({name!r}) is empty or there twice")
    return names


def _picture_folder(tree: Path, path: Path, settings: dict[str, Any], key: str) -> Path:
    """Where a split's pictures are: below the tree, whatever machine wrote data.yaml."""
    value = settings[key]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or "\0" in value or "\0" in str(settings.get("path")):
        raise UserError(f"{path}: {key} must name one folder of pictures")
    below = [part for part in Path(value).parts if part not in ("..", ".", "/")]
    candidates = (tree / str(settings.get("path", "")) / value, tree.joinpath(*below))
    for folder in candidates:
        if folder.is_dir() and folder.resolve().is_relative_to(tree.resolve()):
            return folder
    raise UserError(f"{path}: {key}: {value!r} is no folder below --tree {tree}")


def _label_folder(pictures: Path, tree: Path) -> Path:
    """The folder beside it: …/labels/… for …/images/…, below the tree."""
    parts = pictures.resolve().relative_to(tree.resolve()).parts
    for i in reversed(range(len(parts))):
        if parts[i] == "images":
            return tree.joinpath(*parts[:i], "labels", *parts[i + 1 :])
    return pictures  # labels among the pictures


def _read_split(folder: Path, label_folder: Path, names: list[str]) -> Annotations:
    if not label_folder.is_dir():
        raise UserError(f"{label_folder}: no such folder; the labels of {folder} belong there")
    pictures = pictures_by_stem(folder)
    if not pictures:
        raise UserError(f"{folder}: no picture in it; pictures in folders below are not read")
    for stem, same in pictures.items():
        if len(same) > 1:
            raise UserError(f"{folder}: {same[0]} and {same[1]} would share {stem}.txt")
    labels = {}
    for path in sorted(label_folder.iterdir()):
        if path.suffix.lower() == ".txt":
            if not path.is_file():
                raise UserError(f"{path}: not a regular file, or a link to none")
            labels[path.stem] = path
    astray = sorted(labels.keys() - pictures.keys() - {"classes"})
    if astray:
        raise UserError(f"{labels[astray[0]]}: no picture of that name in {folder}")
    labels = {stem: labels[stem] for stem in sorted(labels.keys() & pictures.keys())}
    content = _parse(label_folder, labels, folder, names)
    with ThreadPoolExecutor(_READERS) as threads:
        sizes = dict(zip(pictures, threads.map(_sizes(folder), pictures.values()), strict=True))
    image_of = {}
    boxes_of: dict[int, list] = {}
    for annotation in content["annotations"]:
        boxes_of.setdefault(annotation["image_id"], []).append(annotation)
    for image in content["images"]:
        image_of[Path(image["file_name"]).name] = image["id"]
    images, annotations = [], []
    for number, (stem, (name,)) in enumerate(pictures.items(), 1):
        stored, upright = sizes[stem]
        images.append({"id": number, "file_name": name, "width": upright[0], "height": upright[1]})
        share = np.tile(np.array(upright) / stored, 2)
        for i, annotation in enumerate(boxes_of.get(image_of.get(stem, -1), ())):
            box = np.array(annotation["bbox"], np.float64)
            if not np.isfinite(box).all():
                raise UserError(f"{labels[stem]}: box {i + 1} is not four finite numbers")
            if (np.abs(box) > 1.5 * np.tile(stored, 2)).any():
                raise UserError(
                    f"{labels[stem]}: box {i + 1} lies beyond 0 to 1: YOLO's are centre and size "
                    "over the picture's width and height"
                )
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": annotation["category_id"] - 1,
                    "bbox": [float(v) for v in box * share],
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return check(label_folder, content)


def _sizes(folder: Path):
    def read(names: Iterable[str]) -> tuple[tuple[int, int], tuple[int, int]]:
        (name,) = names
        try:
            return header_size(folder / name)
        except PictureError as error:
            raise UserError(f"{folder / name}: {error}") from None

    return read


def _parse(
    label_folder: Path, labels: dict[str, Path], folder: Path, names: list[str]
) -> dict[str, Any]:
    """hotcoco's COCO structure of the label files, over stand-ins for odd file and class names."""
    for path in labels.values():
        try:
            path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None
    pictures = pictures_by_stem(folder)
    with tempfile.TemporaryDirectory() as linked:
        label_links, picture_links = Path(linked) / "labels", Path(linked) / "images"
        label_links.mkdir()
        picture_links.mkdir()
        classes = "".join(f"  - class{i}\n" for i in range(len(names)))
        (label_links / "data.yaml").write_text(f"names:\n{classes}")
        for stem, path in labels.items():
            (label_links / f"{stem}.txt").symlink_to(path.resolve())
            (picture_links / pictures[stem][0]).symlink_to((folder / pictures[stem][0]).resolve())
        with named_in({str(label_links): str(label_folder), str(picture_links): str(folder)}):
            content = hotcoco.COCO.from_yolo(str(label_links), images_dir=str(picture_links))
    return content.dataset
