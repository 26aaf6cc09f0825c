"""The folders of a data set, and the splits that their names tell."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

from retina_jax.errors import UserError
from retina_jax.prepare.names import is_picture

_SPLIT = re.compile(
    r"(?<![a-z])(?:(?P<train>train(?:ing|val)?)|(?P<validation>val(?:id(?:ation)?)?|dev)"
    r"|(?P<test>test(?:ing)?))(?![a-z])"
)
_ORDER = (None, "train", "validation", "test")


def split_in(name: str) -> str | None:
    """The split that a name tells by one of its words: train, validation or test."""
    found = _SPLIT.search(name.lower())
    return found.lastgroup if found else None


def split_of(folder: Path, tree: Path) -> str | None:
    """The split that the name of a folder tells, or that of a folder above it in the tree."""
    words = (split_in(part) for part in folder.relative_to(tree).parts)
    return next(filter(None, words), None)


def folders_of(tree: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder of a tree with the names of its files; of links, only those directly in it."""
    links = (path for path in sorted(tree.iterdir()) if path.is_symlink() and path.is_dir())
    for top in (tree, *links):
        for folder, below, files in os.walk(top):
            below[:] = sorted(name for name in below if not name.startswith("."))
            yield Path(folder), sorted(files)


def by_split(tree: Path, folders: Iterable[Path]) -> dict[str | None, list[Path]]:
    """Groups folders by the split that their names tell; only None if no name tells one.

    Raises `UserError` if some tell a split and others do not.
    """
    groups: dict[str | None, list[Path]] = collections.defaultdict(list)
    for folder in folders:
        groups[split_of(folder, tree)].append(folder)
    if None in groups and len(groups) > 1:
        (without, *_), (within, *_) = groups.pop(None), next(iter(groups.values()))
        raise UserError(
            f"{tree} contains annotations in {_shown(within, tree)} and in "
            f"{_shown(without, tree)}, which belongs to no split; choose one of these folders, or "
            "move the other away"
        )
    return {split: groups[split] for split in _ORDER if split in groups}


def best_matches(
    tree: Path, files: Iterable[Path], wanted: Container[str], form: Callable[[str], str]
) -> list[Path]:
    """The folders of a tree relative to which most ``files`` have a wanted name.

    ``form`` turns a relative name into the form that ``wanted`` contains. Empty if none matches.
    """
    matches: collections.Counter[Path] = collections.Counter()
    for file in files:
        parts = file.relative_to(tree).parts
        for depth in range(len(parts)):
            if form("/".join(parts[depth:])) in wanted:
                matches[tree.joinpath(*parts[:depth])] += 1
    most = max(matches.values(), default=0)
    return [folder for folder, count in matches.items() if count == most]


def pictures_in(tree: Path) -> list[Path]:
    return [folder / name for folder, names in folders_of(tree) for name in names
            if is_picture(name)]  # fmt: skip


def _shown(folder: Path, tree: Path) -> str:
    relative = folder.relative_to(tree).as_posix()
    return "the folder itself" if relative == "." else f"{relative}/"
