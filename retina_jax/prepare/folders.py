"""The folders of a data set: the splits that their names tell, and the files that they hold."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

from retina_jax.errors import UserError
from retina_jax.prepare.linked import check_inside, is_inside
from retina_jax.prepare.names import is_picture, walk

_SPLIT = re.compile(
    r"(?<![a-z])(?:(?P<train>train(?:ing|val|set)?)"
    r"|(?P<validation>val(?:id(?:at(?:ion|e))?|set)?|dev)"
    r"|(?P<test>test(?:ing|set)?))(?![a-z])"
)
_ORDER = (None, "train", "validation", "test")


def split_in(name: str) -> str | None:
    """The split that a name tells by its words: train, validation or test.

    None for a name with no such word, or with words for several, such as train_test_split.
    """
    found = {match.lastgroup for match in _SPLIT.finditer(name.lower())}
    return found.pop() if len(found) == 1 else None


def split_of(folder: Path, tree: Path) -> str | None:
    """The split that the name of a folder tells, or that of the nearest folder above it."""
    words = map(split_in, reversed(folder.relative_to(tree).parts))
    return next(filter(None, words), None)


def folders_of(tree: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder of a tree with the names of its files, as `walk` finds them.

    Links to folders inside the tree would show their files twice; a link that leads outside to
    images or annotations is a `UserError`.
    """
    for folder, below, files in walk(tree):
        yield folder, files
        for path in (folder / name for name in below):
            if path.is_symlink() and not is_inside(path, tree.resolve()) and _holds_data(path):
                check_inside(path, tree, follow_links=False)


def _holds_data(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_picture(entry.name) or entry.name.endswith(".xml") for entry in entries)


def by_split(tree: Path, folders: Iterable[Path]) -> dict[str | None, list[Path]]:
    """Groups folders by the split that their names tell; only None if no name tells one.

    The splits are the names at the highest place where all folders tell one and not all the same.
    Raises `UserError` if some tell a split and others do not.
    """
    folders = list(folders)
    paths = [folder.relative_to(tree).parts for folder in folders]
    splits = [split_of(folder, tree) for folder in folders]
    for depth in range(min(map(len, paths), default=0)):
        told = [split_in(parts[depth]) for parts in paths]
        if None not in told and len(set(told)) > 1:
            splits = told
            break
    groups: dict[str | None, list[Path]] = collections.defaultdict(list)
    for folder, split in zip(folders, splits, strict=True):
        groups[split].append(folder)
    if None in groups and len(groups) > 1:
        (without, *_), (within, *_) = groups.pop(None), next(iter(groups.values()))
        raise UserError(
            f"{tree} contains annotations in {shown(within, tree)} and in "
            f"{shown(without, tree)}, which belongs to no split; choose one of these folders, or "
            "move the other away"
        )
    return {split: groups[split] for split in _ORDER if split in groups}


def matches(
    tree: Path, files: Iterable[Path], wanted: Container[str], form: Callable[[str], str]
) -> collections.Counter[Path]:
    """By folder of a tree: how many ``files`` have a wanted name relative to it.

    ``form`` turns a relative name into the form that ``wanted`` contains.
    """
    found: collections.Counter[Path] = collections.Counter()
    for file in files:
        parts = file.relative_to(tree).parts
        for depth in range(len(parts)):
            if form("/".join(parts[depth:])) in wanted:
                found[tree.joinpath(*parts[:depth])] += 1
    return found


def pictures_in(tree: Path, split: str | None = None) -> list[Path]:
    """The images of a tree, without those in folders that tell a split other than ``split``."""
    return [
        folder / name
        for folder, names in folders_of(tree)
        if split is None or split_of(folder, tree) in (split, None)
        for name in names
        if is_picture(name)
    ]


def shown(folder: Path, tree: Path) -> str:
    """A folder of a tree in messages."""
    relative = folder.relative_to(tree).as_posix()
    return "the folder itself" if relative == "." else f"{relative}/"
