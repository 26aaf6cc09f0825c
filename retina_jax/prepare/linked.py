"""What the readers of whole trees share: errors that name the user's files, names by stem."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from retina_jax.data.images import SUFFIXES
from retina_jax.errors import UserError


@contextlib.contextmanager
def named_in(places: Mapping[str, str]):
    """Errors of hotcoco, which reads a folder of links, as `UserError` with the files' own names.

    ``places``: folder of links to the folder it stands for.
    """
    try:
        yield
    except (ValueError, OSError, OverflowError) as error:
        text = " ".join(str(error).split())
        for link, folder in places.items():
            text = text.replace(link, folder)
        text = text.removeprefix("parse error: ").removeprefix("XML error: ")
        raise UserError(text) from None


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path, its links followed, lies below ``root``, which is resolved."""
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a ring of links
        return False


def check_inside(path: Path, root: Path, follow_links: bool) -> None:
    """`UserError` for a link that leads out of ``root``, unless it may."""
    if not follow_links and not is_inside(path, root.resolve()):
        raise UserError(f"{path}: is a link out of {root}; add --follow-links if you trust it")


def pictures_by_stem(folder: Path) -> dict[str, list[str]]:
    """Names of the pictures in a folder, by what stands before their last dot."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            found.setdefault(path.stem, []).append(path.name)
    return found


def unique_by_stem(folder: Path, stem: str) -> str | None:
    """The one picture of that stem; None where there is none, or several."""
    names = [f"{stem}{suffix}" for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES))]
    there = [name for name in names if (folder / name).is_file()]
    return there[0] if len(there) == 1 else None
