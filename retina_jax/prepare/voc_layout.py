"""Find the annotation files and the images of each split of a Pascal VOC data set.

Only the development kit has lists of the images in ImageSets/Main. Other tools write the XML files
among the images, or into a folder of any name beside theirs, and have a folder for each split.
"""

from __future__ import annotations

import dataclasses
import html
import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from retina_jax.errors import UserError
from retina_jax.prepare.folders import (
    by_split,
    folders_of,
    matches,
    pictures_in,
    shown,
    split_in,
    split_of,
)
from retina_jax.prepare.names import Folder, key, stem_of

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


def has_annotations(tree: Path) -> bool:
    """Whether a tree has the kit's folder of XML files."""
    return any((tree / "Annotations").glob("*.xml"))


def parts_of(tree: Path, splits: Mapping[str, str]) -> dict[str, Part]:
    """The files of ``splits``, which maps names to lists in ImageSets/Main, such as ``val``.

    In a tree without lists, the words train, val and test in the names of its folders are the
    splits; if it has no such folders, all its files are the only split, whatever its name. Raises
    `UserError` if the tree has no annotations, or none of that split.
    """
    kit = tree / "Annotations"
    if has_lists(tree):
        if not kit.is_dir():
            raise UserError(f"{tree} has no Annotations folder beside ImageSets")
        pictures = _kit_pictures(tree)
        return {
            split: Part(kit, pictures, tree / _LISTS / f"{listed}.txt")
            for split, listed in splits.items()
        }
    found = {None: Part(kit, _kit_pictures(tree))} if has_annotations(tree) else loose_parts(tree)
    if not found:
        raise UserError(
            f"{tree} has no Annotations folder, and no other folder with XML files of VOC; "
            "give the folder that contains the annotations and the images"
        )
    if None in found and len(splits) == 1:
        return dict(zip(splits, found.values(), strict=True))
    parts = {}
    for split, listed in splits.items():
        if split_in(listed) not in found:
            there = ", ".join(filter(None, found)) or "one name for all files"
            raise UserError(
                f"{tree} has no ImageSets/Main, and no folder of annotations for --split {listed}; "
                f"--split can be {there}"
            )
        parts[split] = found[split_in(listed)]
    return parts


def loose_parts(tree: Path) -> dict[str | None, Part]:
    """The parts of a tree without lists by split: only None if the folders tell no splits.

    Empty if the tree has no annotations. Raises `UserError` if it is unclear which files belong
    together.
    """
    annotated = [folder for folder, files in folders_of(tree) if _any_annotation(folder, files)]
    groups = by_split(tree, annotated)
    parts = {}
    for split, folders in groups.items():
        above = Path(os.path.commonpath(folders))
        others = [f for name, of in groups.items() if name != split for f in of]
        if any(other.is_relative_to(above) for other in others):
            listed = ", ".join(xml_in(folder, tree) for folder in folders[:3])
            raise UserError(
                f"{tree}: the annotations for {split} are in several folders ({listed}); move them "
                f"to one, such as {split}"
            )
        parts[split] = Part(above, _pictures_for(above, tree, split))
    return parts


def xml_in(folder: Path, tree: Path) -> str:
    """The annotations in a folder, such as ``annotations/*.xml``."""
    return (folder.relative_to(tree) / "*.xml").as_posix()


def _any_annotation(folder: Path, files: Iterable[str]) -> bool:
    return any(_START.search(_head(folder / name)) for name in files if key(name).endswith(".xml"))


_START = re.compile(r"<annotation[\s>]")


def _head(path: Path) -> str:
    """The first kilobytes of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4096).replace(b"\0", b"").decode(errors="replace")  # also of UTF-16
    except OSError:
        return ""


def _kit_pictures(tree: Path) -> Path:
    """The image folder of a tree with Annotations: of a usual name, else that which matches."""
    for name in _PICTURES:
        if (tree / name).is_dir():
            return tree / name
    found = _pictures_for(tree / "Annotations", tree, None)
    return tree / _PICTURES[0] if found == tree / "Annotations" else found


def _pictures_for(annotations: Path, tree: Path, split: str | None) -> Path:
    """The folder of the images that belong to the XML files in a folder.

    It contains the most images that <filename> names, and else the most with the stem of an XML
    file, at the same place. If several folders share the images, or none has them at the same
    place, it is the one above all images with the stem of an XML file. Raises `UserError` if two
    folders could be meant.
    """
    xml = {stem_of(name): name for name in Folder(annotations).files if key(name).endswith(".xml")}
    pictures = pictures_in(tree, split)
    found = matches(tree, pictures, xml, stem_of)
    if not found or (len(found) > 1 and found.total() <= len(xml)):  # each has a part of the images
        return _above_all(annotations, xml, pictures, tree)
    named = found
    if len(found) > 1:  # masks or thumbnails have the same stems
        own = {stem: _file_name(annotations / name) for stem, name in xml.items()}
        own = {key(posixpath.join(posixpath.dirname(stem), name)) for stem, name in own.items()}
        named = matches(tree, pictures, own, key)
        named = named if named.total() else found
    best = max(found, key=lambda folder: (named[folder], found[folder]))
    rivals = [folder for folder in found if 2 * named[folder] > named[best]]
    for wanted in (annotations, *(annotations.parent / name for name in _PICTURES)):
        if wanted in rivals and named[wanted] == named[best]:
            return wanted
    if len(rivals) > 1:
        first, second, *_ = (shown(folder, tree) for folder in rivals)
        raise UserError(
            f"{tree}: {first} and {second} both contain the images of "
            f"{xml_in(annotations, tree)}; move one away"
        )
    return best


def _file_name(xml: Path) -> str:
    """The <filename> of an annotation file, without folders."""
    found = re.search(r"<filename>([^<]*)</filename>", _head(xml))
    name = html.unescape(found[1]).strip() if found else ""
    return posixpath.basename(name.replace("\\", "/"))


def _above_all(annotations: Path, xml: Iterable[str], pictures: list[Path], tree: Path) -> Path:
    stems = {posixpath.basename(stem) for stem in xml}
    mine = [path for path in pictures if posixpath.basename(stem_of(path.name)) in stems]
    if not mine:
        holders = list(dict.fromkeys(picture.parent for picture in pictures))
        return holders[0] if len(holders) == 1 else annotations
    told = {split_of(path.parent, tree): path.parent for path in mine}
    if len(told) > 1:
        listed = " and ".join(shown(folder, tree) for folder in told.values())
        raise UserError(
            f"{tree}: the images of {xml_in(annotations, tree)} are in {listed}; move the XML "
            "files to folders with the names of the splits, too"
        )
    return Path(os.path.commonpath([path.parent for path in mine]))
