"""Find the annotation files and the images of each split of a Pascal VOC data set.

Only the development kit has lists of the images in ImageSets/Main. Other tools write the XML files
among the images, or into a folder of any name beside theirs, and have a folder for each split.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from retina_jax.errors import UserError
from retina_jax.prepare.folders import (
    best_matches,
    by_split,
    folders_of,
    pictures_in,
    split_in,
    split_of,
)
from retina_jax.prepare.names import key, stem_of

_LISTS = Path("ImageSets", "Main")
_PICTURES = ("JPEGImages", "images", "data")
"""Usual names of image folders: the kit's, Label Studio's and FiftyOne's."""


@dataclasses.dataclass(frozen=True)
class Part:
    """The files of one split."""

    annotations: Path
    """Folder of the XML files."""
    pictures: Path
    """Folder of the images."""
    listed: Path | None = None
    """File that lists the images; None: all XML files in the folder and its subfolders."""


def has_lists(tree: Path) -> bool:
    return (tree / _LISTS).is_dir()


def lists_of(tree: Path) -> list[str]:
    """The names of the lists in ImageSets/Main, sorted."""
    return sorted(path.stem for path in (tree / _LISTS).glob("*.txt"))


def parts_of(tree: Path, splits: Mapping[str, str]) -> dict[str, Part]:
    """The files of ``splits``, which maps names to lists in ImageSets/Main, such as ``val``.

    In a tree without lists, the words train, val and test in the names of its folders are the
    splits; if it has no such folders, all its files are the only split, whatever its name. Raises
    `UserError` if the tree has no annotations, or none of that split.
    """
    if has_lists(tree):
        folder = tree / "Annotations"
        if not folder.is_dir():
            raise UserError(f"{tree} has no Annotations folder beside ImageSets")
        pictures = tree / next((n for n in _PICTURES if (tree / n).is_dir()), _PICTURES[0])
        return {
            split: Part(folder, pictures, tree / _LISTS / f"{listed}.txt")
            for split, listed in splits.items()
        }
    found = loose_parts(tree)
    if not found:
        raise UserError(
            f"{tree} has no Annotations folder, and no other folder with XML files of VOC; "
            "give the folder that contains the annotations and the images"
        )
    if len(found) == len(splits) == 1:
        return dict(zip(splits, found.values(), strict=True))
    parts = {}
    for split, listed in splits.items():
        word = split_in(listed)
        if word not in found:
            raise UserError(
                f"{tree} has no folder of annotations for --split {listed}; "
                f"--split can be {', '.join(found)}"
            )
        parts[split] = found[word]
    return parts


def loose_parts(tree: Path) -> dict[str, Part]:
    """The parts of a tree without lists by split; empty if it has no annotations.

    Raises `UserError` if it is unclear which files belong together.
    """
    annotated = [folder for folder, files in folders_of(tree) if _has_annotations(folder, files)]
    groups = by_split(tree, annotated)
    pictures = pictures_in(tree) if annotated else []
    parts = {}
    for split, folders in groups.items():
        above = Path(os.path.commonpath(folders))
        others = [f for name, of in groups.items() if name != split for f in of]
        if any(other.is_relative_to(above) for other in others):
            listed = ", ".join(shown(folder, tree) for folder in folders[:3])
            raise UserError(
                f"{tree}: the annotations for {split} are in several folders ({listed}); move them "
                f"to one, such as {split}"
            )
        own = [path for path in pictures if split_of(path.parent, tree) in (split, None)]
        parts[split or "train"] = Part(
            above, _pictures_for(above, own if split else pictures, tree)
        )
    return parts


def shown(folder: Path, tree: Path) -> str:
    """The annotations in a folder, such as ``annotations/*.xml``."""
    return (folder.relative_to(tree) / "*.xml").as_posix()


def _has_annotations(folder: Path, files: Iterable[str]) -> bool:
    names = [name for name in files if key(name).endswith(".xml")]
    if names and folder.name == "Annotations":
        return True
    return any(_is_annotation(folder / name) for name in names)


def _is_annotation(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"<annotation" in file.read(4096).replace(b"\0", b"")  # also in UTF-16
    except OSError:
        return False


def _pictures_for(annotations: Path, pictures: Iterable[Path], tree: Path) -> Path:
    """The folder in which most annotation files of a folder have an image of the same stem."""
    stems = {
        stem_of((folder / name).relative_to(annotations).as_posix())
        for folder, files in folders_of(annotations)
        for name in files
        if key(name).endswith(".xml")
    }
    matches = best_matches(tree, pictures, stems, stem_of)
    best = matches or list(dict.fromkeys(picture.parent for picture in pictures))
    for wanted in (annotations, *(annotations.parent / name for name in _PICTURES)):
        if wanted in best:
            return wanted
    if len(matches) > 1:
        first, second, *_ = (folder.relative_to(tree).as_posix() for folder in matches)
        raise UserError(
            f"{tree}: {first} and {second} both contain the images of "
            f"{shown(annotations, tree)}; move one away"
        )
    return best[0] if len(best) == 1 else annotations
