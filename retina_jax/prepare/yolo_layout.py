"""What data.yaml would say of a YOLO tree that has none: Label Studio's, labelImg's, Darknet's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from retina_jax.errors import UserError
from retina_jax.prepare.folders import by_split, folders_of, split_in
from retina_jax.prepare.linked import check_inside
from retina_jax.prepare.names import is_picture, stem_of

_NAMES = ("classes.txt", "obj.names")
"""Files of class names, one per line: labelImg's and Label Studio's, and Darknet's."""
_KEYS = {"train": "train", "validation": "val", "test": "test"}
"""The keys of data.yaml by split."""


def label_folder(pictures: Path, tree: Path) -> Path:
    """Returns the label folder: …/labels/… for …/images/…, inside the tree."""
    parts = pictures.resolve().relative_to(tree.resolve()).parts
    for i in reversed(range(len(parts))):
        if parts[i] == "images":
            return tree.joinpath(*parts[:i], "labels", *parts[i + 1 :])
    return pictures  # labels among the pictures


def settings_without_yaml(tree: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file of the class names, and the settings as in data.yaml; None if this is no YOLO tree.

    The splits are those of obj.data, or those that the names of the folders tell; without either,
    all images are for training. Raises `UserError` if files contradict each other, or for an image
    folder that is a link out of the tree.
    """
    found = list(folders_of(tree))
    files = [folder / name for folder, files in found for name in files if name in _NAMES]
    if not files:
        return None
    folders = []
    for folder, names in found:
        if any(map(is_picture, names)):
            check_inside(folder, tree, follow_links=False)
            if label_folder(folder, tree) != folder or _has_labels(names):
                folders.append(folder)
    if not any(_is_labelled(folder, tree) for folder in folders):
        return None
    names = _lines(files[0])
    for other in files[1:]:
        if _lines(other) != names:
            raise UserError(f"{files[0]} and {other} differ; delete the outdated one")
    settings = _lists(tree)
    if not settings:
        places = by_split(tree, folders)
        settings = {
            _KEYS[split or "train"]: [folder.relative_to(tree).as_posix() for folder in of]
            for split, of in places.items()
        }
    return files[0], {"names": names, **settings}


def _has_labels(names: list[str]) -> bool:
    """Whether there is a .txt file of the same stem as an image."""
    stems = {stem_of(name) for name in names if is_picture(name)}
    return any(stem_of(name) in stems for name in names if name.endswith(".txt"))


def _is_labelled(pictures: Path, tree: Path) -> bool:
    labels = label_folder(pictures, tree)
    if not labels.is_dir():
        return False
    return _has_labels([path.name for place in {pictures, labels} for path in place.iterdir()])


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return [line.strip() for line in re.split(r"\r\n|\n|\r", text) if line.strip()]


def _lists(tree: Path) -> dict[str, str]:
    """The lists of images that Darknet's obj.data names, which lie beside it, by key."""
    path = tree / "obj.data"
    settings = {}
    for line in _lines(path) if path.is_file() else ():
        word, equals, value = (part.strip() for part in line.partition("="))
        name = value.replace("\\", "/").rpartition("/")[2]
        split = split_in(word)
        if equals and split and name.endswith(".txt") and (tree / name).is_file():
            settings[_KEYS[split]] = name
    return settings
