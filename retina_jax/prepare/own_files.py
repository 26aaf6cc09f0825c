"""Recognises a data set by its files: COCO, VOC, YOLO, or one that `prepare` wrote."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from retina_jax.data.data_set import data_sets
from retina_jax.errors import UserError
from retina_jax.prepare.annotations import Annotations
from retina_jax.prepare.build import Folders, Source, home_of, source_of
from retina_jax.prepare.coco_json import read_coco
from retina_jax.prepare.folders import folders_of, matches, pictures_in, shown, split_in
from retina_jax.prepare.handling import LeftOut
from retina_jax.prepare.names import key
from retina_jax.prepare.voc_layout import (
    has_annotations,
    has_lists,
    lists_of,
    loose_parts,
    xml_in,
)
from retina_jax.prepare.voc_xml import read_voc
from retina_jax.prepare.yolo_layout import settings_in, settings_without_yaml
from retina_jax.prepare.yolo_tree import SPLITS as YOLO_SPLITS
from retina_jax.prepare.yolo_tree import read_yolo

HELD_OUT = 0.2
"""Share of the images that validate if the files have a single split."""
_WORDS = {"train": "train", "val": "validation", "test": "test"}
_LOOKED_FOR = (
    "a COCO .json file (or …train….json and …val….json in the folder or its annotations/), "
    "data.yaml, classes.txt or obj.names (YOLO), .xml files (VOC), or a data set that prepare wrote"
)


@dataclasses.dataclass(frozen=True)
class OwnFiles:
    """What a path contains."""

    kind: str
    """coco, voc, yolo or prepared."""
    root: Path
    why: str
    """The files by which it was recognised."""
    lists: dict[str, str] = dataclasses.field(default_factory=dict)
    """By split: COCO's JSON file, or VOC's list."""
    loose: bool = False
    """Whether no file says which images and annotations belong to the data set."""


def recognise(path: str | Path) -> OwnFiles:
    """The data set at ``path``; `UserError` if it is none, or if it could be several."""
    root = home_of(Path(path))
    if root.is_file() and root.suffix.lower() == ".json":
        return OwnFiles("coco", root.parent, root.name, {"train": str(root)})
    if not root.is_dir():
        what = "is not a .json file" if root.exists() else "does not exist"
        raise UserError(f"--data={path} {what}; set it to a folder or a COCO .json file")
    found = [one for one in (_prepared(root), _yolo(root), _voc(root), _coco(root)) if one]
    if not found:
        below = _described_below(root)
        if len(below) > 1:
            listed = ", ".join(shown(folder, root) for folder in below)
            raise UserError(f"--data={path} contains several data sets ({listed}); choose one")
        if below:
            return recognise(below[0])
        found = [one for one in (_loose_voc(root), _loose_yolo(root)) if one]
    if not found:
        raise UserError(f"--data={path} is no data set; looked for {_LOOKED_FOR}")
    if len(found) > 1:
        listed = ", ".join(f"{one.kind} ({one.why})" for one in found)
        raise UserError(
            f"--data={path} could be {listed}; move one of them away, or convert one with the "
            "prepare command and set --data to the result"
        )
    return found[0]


def _described_below(root: Path) -> list[Path]:
    """The folders below that say by a file or lists which images and annotations they have."""
    below = []
    for folder, files in folders_of(root):
        if folder != root and (has_lists(folder) or settings_in(folder) or "obj.data" in files):
            below.append(folder)
    return below


def _prepared(root: Path) -> OwnFiles | None:
    if data_sets(root):
        return OwnFiles("prepared", root, ", ".join(data_sets(root)))
    version = root if (root / "dataset_info.json").is_file() else None
    below = [path.parent for path in root.glob("*/dataset_info.json")]
    version = version or (below[0] if below else None)
    if version is None:
        return None
    return OwnFiles("prepared", version.parent.parent, "dataset_info.json")


def _yolo(root: Path) -> OwnFiles | None:
    path = settings_in(root)
    return OwnFiles("yolo", root, path.name) if path else None


def _loose_yolo(root: Path) -> OwnFiles | None:
    found = settings_without_yaml(root)
    return (
        OwnFiles("yolo", root, found[0].relative_to(root).as_posix(), loose=True) if found else None
    )


def _voc(root: Path) -> OwnFiles | None:
    trees = [root, *sorted(path for path in root.glob("VOC*") if path.is_dir())]
    trees += sorted(root.glob("VOCdevkit/VOC*"))
    trees = [tree for tree in trees if has_lists(tree) or has_annotations(tree)]
    if not trees:
        return None
    if len(trees) > 1:
        listed = ", ".join(str(tree.relative_to(root)) for tree in trees)
        raise UserError(f"--data={root} contains several VOC trees ({listed}); set --data to one")
    (tree,) = trees
    if has_lists(tree):
        return OwnFiles("voc", tree, "ImageSets/Main", _voc_lists(root, lists_of(tree)))
    return OwnFiles("voc", tree, "Annotations/*.xml", {"train": "train"})


def _loose_voc(root: Path) -> OwnFiles | None:
    parts = loose_parts(root)
    if not parts:
        return None
    why = ", ".join(xml_in(part.annotations, root) for part in parts.values())
    if not {"train", None} & parts.keys():
        raise UserError(f"--data={root} contains {why}, none for training")
    splits = {split or "train": split or "train" for split in parts}
    return OwnFiles("voc", root, why, splits, loose=True)


def _voc_lists(root: Path, there: list[str]) -> dict[str, str]:
    """The lists in ImageSets/Main to use, by split."""
    for train, other in (("train", "val"), ("trainval", "test"), ("train", "test")):
        if {train, other} <= set(there):
            return {"train": train, _WORDS[other]: other}
    usual = [name for name in ("trainval", "train", "val", "test") if name in there]
    by_word = [(split_in(name), name) for name in there]
    lists = {split: name for split, name in by_word if split}
    if "train" in lists and len(lists) > 1 and len(lists) == len(there):  # Train, Validation
        return lists
    if usual or len(there) == 1:
        return {"train": (usual or there)[0]}
    raise UserError(
        f"--data={root}: ImageSets/Main has none of train.txt, val.txt, trainval.txt and "
        "test.txt; add a list of the images"
    )


def _coco(root: Path) -> OwnFiles | None:
    """One JSON file per split, by the words in its name or, as Roboflow has it, of its folder."""
    places = (
        root.glob("*.json"),
        root.glob("annotations/*.json"),
        root.glob("*/_annotations*.json"),
        root.glob("*/labels.json"),
    )
    files = [file for place in places for file in sorted(place)]
    files = [file for file in files if _has_lists(file)]
    if len(files) == 1:
        return OwnFiles("coco", root, files[0].name, {"train": str(files[0])})
    lists: dict[str, str] = {}
    for file in files:
        name = file.stem if any(w in file.stem.lower() for w in _WORDS) else file.parent.name
        split = next((s for word, s in _WORDS.items() if word in name.lower()), "")
        if not split or split in lists:
            listed = ", ".join(str(other.relative_to(root)) for other in files[:5])
            raise UserError(
                f"--data={root} contains {len(files)} COCO files ({listed}), of which one each "
                "must have train and val (or test) in its name; set --data to one .json file, or "
                "use the prepare command"
            )
        lists[split] = str(file)
    if not lists:
        return None
    if "train" not in lists:
        raise UserError(f"--data={root} contains {', '.join(lists.values())}, none for training")
    return OwnFiles("coco", root, ", ".join(Path(file).name for file in lists.values()), lists)


def _has_lists(file: Path) -> bool:
    """Whether a JSON file is COCO's; others, such as results, may lie beside it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def open_source(found: OwnFiles, skip_bad: bool = False) -> tuple[Source, str]:
    """The rows of a data set, and a line about its splits.

    If there is only one split, `hold_out` makes the second. Raises `UserError` for unusable files.
    """
    if found.kind == "yolo":
        left_out = {split: LeftOut(skip_bad) for split in YOLO_SPLITS.values()}
        splits: Folders = read_yolo(found.root, False, left_out)
    elif found.kind == "voc":
        left_out = {split: LeftOut(skip_bad) for split in found.lists}
        splits = read_voc(found.root, found.lists, False, left_out)
    else:
        splits = {}
        for split, file in found.lists.items():
            annotations = read_coco(Path(file), LeftOut(skip_bad))
            splits[split] = (
                annotations,
                _pictures_of(annotations, found.root, split if len(found.lists) > 1 else None),
            )
    line = f"splits: {', '.join(splits)}"
    if len(splits) == 1:
        ((annotations, folder),) = splits.values()
        train, held = hold_out(annotations)
        splits = {"train": (train, folder), "validation": (held, folder)}
        line = (
            f"one split; held out {len(held.images)} of {len(annotations.images)} images for "
            "validation, by a hash of the file name (near-duplicates may be in both splits; "
            "retina-jax doctor finds them)"
        )
    source = source_of(found.kind, splits, False, skip_bad)
    if found.loose:
        used = [folder for _, folder in splits.values()]
        source = dataclasses.replace(source, found=source.found | _others(found.root, used))
    return source, line


def _others(root: Path, used: list[Path]) -> dict[str, int]:
    """The number of images that are in none of the folders ``used``."""
    others = [path for path in pictures_in(root) if not any(map(path.is_relative_to, used))]
    if not others:
        return {}
    first = shown(others[0].parent, root)
    return {f"images in other folders, such as {first}, left out": len(others)}


def _pictures_of(annotations: Annotations, root: Path, split: str | None) -> Path:
    """The folder that contains most of the images: one of the usual, else any in ``root``.

    Not the folder of another split than ``split``, if there are several.
    """
    beside = annotations.path.parent
    above = beside.parent if beside.name == "annotations" else root
    names = [image["file_name"] for image in annotations.images]
    places = [beside, beside / "images", beside.parent, beside.parent / "images"]
    places += [beside / annotations.path.stem]
    around = [folder for folder in sorted(beside.parent.glob("*")) if folder.is_dir()]
    told = dict.fromkeys(filter(Path.is_dir, places)) | {f: split_in(f.name) for f in around[:50]}
    there = {
        folder: (sum((folder / name).is_file() for name in names[:20]), own == split)
        for folder, own in told.items()
        if split is None or own in (split, None)
    }
    best = max(there, key=there.get, default=None)
    if best and there[best][0]:
        several = [folder for folder in there if there[folder] == there[best]]
        return best if best in places else _only(several, annotations)
    found = matches(above, pictures_in(above, split), set(map(key, names)), key)
    several = [folder for folder, count in found.items() if 2 * count > max(found.values())]
    if several:
        return _only(several, annotations)
    raise UserError(
        f"{annotations.path}: its images, such as {names[0]!a}, are not in {above}; move them to "
        "images/ beside the file"
    )


def _only(folders: list[Path], annotations: Annotations) -> Path:
    """The only one of ``folders``; `UserError` if there are several."""
    if len(folders) > 1:
        first, second, *_ = folders
        raise UserError(
            f"{annotations.path}: {first} and {second} both contain its images; move one away"
        )
    return folders[0]


def hold_out(annotations: Annotations, share: float = HELD_OUT) -> tuple[Annotations, Annotations]:
    """Two parts of a split: for training, and a ``share`` of the images for validation.

    An image's part depends only on its file name, so it stays when others are added. Each part has
    at least one image. Raises `UserError` for a single image.
    """
    if len(annotations.images) < 2:
        raise UserError(f"{annotations.path}: one image is too few for training and validation")
    places = {image["id"]: _place(image["file_name"]) for image in annotations.images}
    limit = sorted(places.values())
    limit = min(max(share, limit[0]), limit[-2])
    held = {image_id for image_id, place in places.items() if place <= limit}
    return (
        _part(annotations, places.keys() - held),
        dataclasses.replace(_part(annotations, held), counts=type(annotations.counts)(),
                            left_out=()),
    )  # fmt: skip


def _place(name: str) -> float:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _part(annotations: Annotations, kept: Iterable[int]) -> Annotations:
    chosen = set(kept)
    return dataclasses.replace(
        annotations,
        images=[image for image in annotations.images if image["id"] in chosen],
        annotations={i: of for i, of in annotations.annotations.items() if i in chosen},
    )


def digest_of(source: Source) -> str:
    """Changes with the annotations, and with the names, sizes and dates of the images."""
    digest = hashlib.sha256(json.dumps([list(source.class_names)]).encode())
    for split, rows in source.rows.items():
        digest.update(f"{split} {len(rows)}\n".encode())
        for row in range(len(rows)):
            digest.update(rows.fingerprint(row).encode())
    return digest.hexdigest()
