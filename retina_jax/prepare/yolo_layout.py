"""What data.yaml would say of a YOLO tree that has none: Label Studio's, labelImg's, Darknet's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from retina_jax.errors import UserError
from retina_jax.prepare.folders import by_split, folders_of, split_in
from retina_jax.prepare.names import is_picture, stem_of

SETTINGS = ("data.yaml", "data.yml", "dataset.yaml")
"""Names of the settings: Ultralytics' and FiftyOne's."""
_NAMES = ("classes.txt", "obj.names", "_darknet.labels")
"""Files of class names, one per line: labelImg's and Label Studio's, Darknet's, Roboflow's."""
_LABELS = {"images": "labels", "image": "label"}
_KEYS = {"train": "train", "validation": "val", "test": "test"}
"""The keys of data.yaml by split."""


def settings_in(tree: Path) -> Path | None:
    """The file of the settings in a tree, if there is one."""
    return next((tree / name for name in SETTINGS if (tree / name).exists()), None)


def label_folder(pictures: Path, tree: Path) -> Path:
    """Returns the label folder: …/labels/… for …/images/…, inside the tree, in upper or lower case.

    Labels may also be among the images.
    """
    parts = pictures.resolve().relative_to(tree.resolve()).parts
    for i in reversed(range(len(parts))):
        if labels := _LABELS.get(parts[i].lower()):
            above = tree.joinpath(*parts[:i])
            named = [path for path in sorted(above.iterdir()) if path.name.lower() == labels]
            found = (named[0] if named else above / labels).joinpath(*parts[i + 1 :])
            if found.is_dir() or not _has_labels([path.name for path in pictures.iterdir()]):
                return found
            break
    return pictures


def settings_without_yaml(tree: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file of the class names, and the settings as in data.yaml; None if this is no YOLO tree.

    The splits are those of lists of the images, as in Darknet's obj.data, or those that the names
    of the folders tell; without either, all images are for training. Raises `UserError` if files
    contradict each other, or without a split for training.
    """
    found = list(folders_of(tree))
    files = [folder / name for folder, names in found for name in names if name in _NAMES]
    if not files:
        return None
    folders = [
        folder
        for folder, names in found
        if any(map(is_picture, names)) and _is_labelled(folder, tree)
    ]
    if not folders:
        return None
    names = _class_names(files[0])
    for other in files[1:]:
        if _class_names(other) != names:
            raise UserError(f"{files[0]} and {other} differ; delete the outdated one")
    settings = _lists(tree)
    if not settings:
        settings = {
            _KEYS[split or "train"]: [folder.relative_to(tree).as_posix() for folder in of]
            for split, of in by_split(tree, folders).items()
        }
    if "train" not in settings:
        places = ", ".join(f"{value if isinstance(value, str) else value[0]}"
                           for value in settings.values())  # fmt: skip
        raise UserError(f"{tree} contains {places}, none for training")
    return files[0], {"names": names, **settings}


def _has_labels(names: list[str]) -> bool:
    """Whether there is a .txt file of the same stem as an image."""
    stems = {stem_of(name) for name in names if is_picture(name)}
    return any(stem_of(name) in stems for name in names if name.lower().endswith(".txt"))


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
    return [line.strip() for line in re.split(r"\r\n|\n|\r", text.rstrip())]


def _class_names(path: Path) -> list[str]:
    names = _lines(path)
    if "" in names:  # left out, it would shift the numbers of the classes after it
        raise UserError(f"{path}: line {names.index('') + 1} is empty; write the name of its class")
    return names


def _lists(tree: Path) -> dict[str, str]:
    """The lists of images in a tree by key: those that obj.data names, or train.txt and so on."""
    lists = {path.name: path for path in sorted(tree.glob("*.txt"))}
    words = {name: path.stem for name, path in lists.items()}
    if (tree / "obj.data").is_file():
        words = {}
        for line in _lines(tree / "obj.data"):
            word, _, value = line.partition("=")
            words.setdefault(value.strip().replace("\\", "/").rpartition("/")[2], word)
    return {
        _KEYS[split]: name
        for name, word in words.items()
        if (split := split_in(word)) and name in lists and is_picture(_lines(lists[name])[0])
    }
