"""Names as other programs write them, matched by what they mean.

Unicode has several spellings of one text (NFC, NFD), Windows writes backslashes and byte order
marks, and cameras write .JPG where a list says .jpg. An exact match always comes first.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import posixpath
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from retina_jax.data.images import SUFFIXES

BYTE_ORDER_MARK = "\ufeff"


def clean(text: str) -> str:
    """The text in NFC, without byte order marks before it."""
    return unicodedata.normalize("NFC", text.lstrip(BYTE_ORDER_MARK))


def key(name: str) -> str:
    """What a file's name is matched by: clean, forward slashes, its suffix in lower case."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    stem, suffix = posixpath.splitext(str(PurePosixPath(*map(clean, parts))))
    return stem + suffix.lower()


def leads_outside(name: str) -> bool:
    """Whether it is an absolute path, of any system, or goes upwards."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or PureWindowsPath(name).is_absolute()


def is_picture(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in SUFFIXES


class Folder:
    """The files in a folder and below it, found by name; safe to use from several threads."""

    def __init__(self, path: Path):
        self.path = path

    @functools.cached_property
    def files(self) -> list[str]:
        """Names relative to the folder, sorted."""
        return sorted(
            (Path(root) / file).relative_to(self.path).as_posix()
            for root, _, files in os.walk(self.path)
            for file in files
        )

    @functools.cached_property
    def _by_key(self) -> dict[str, list[str]]:
        return _grouped((key(name), name) for name in self.files)

    @functools.cached_property
    def pictures_by_stem(self) -> dict[str, list[str]]:
        """Pictures by what stands before their last dot, as `key` writes it."""
        named = ((stem_of(name), name) for name in self.files if is_picture(name))
        return _grouped((stem, name) for stem, name in named if (self.path / name).is_file())

    def find(self, name: str) -> list[str]:
        """The files that ``name`` can mean: one, none, or several that nothing tells apart.

        A name may repeat the folder's own: images/a.jpg in the folder images.
        """
        with contextlib.suppress(OSError):  # a name too long for any file
            if (self.path / name).is_file():
                return [name]
        if key(name) in self._by_key:
            return self._by_key[key(name)]
        parts = PurePosixPath(key(name)).parts
        own = tuple(clean(part) for part in self.path.absolute().parts)
        for count in range(1, len(parts)):
            rest = "/".join(parts[count:])
            if own[-count:] == parts[:count] and rest in self._by_key:
                return self._by_key[rest]
        return []

    def nearest(self, name: str) -> str | None:
        """A file whose name differs from ``name`` in little, for a message."""
        loose = _grouped((_loose(PurePosixPath(n).name), n) for n in self.files)
        wanted = _loose(PurePosixPath(key(name)).name)
        if wanted in loose:
            return loose[wanted][0]
        if len(loose) > 10_000:  # comparing takes seconds
            return None
        close = difflib.get_close_matches(wanted, list(loose), n=1, cutoff=0.85)
        return loose[close[0]][0] if close else None


def stem_of(name: str) -> str:
    """`key` without the suffix, which is what stands behind the last dot."""
    return posixpath.splitext(key(name))[0]


def _loose(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Zs"))


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for group, name in pairs:
        found.setdefault(group, []).append(name)
    return found
