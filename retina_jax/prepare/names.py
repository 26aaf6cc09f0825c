"""Match file names across programs that write them differently.

Unicode can encode the same text in several ways (NFC, NFD). Windows writes backslashes and byte
order marks. Cameras write .JPG where a list says .jpg. An exact match always comes first.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from retina_jax.data.images import SUFFIXES

BYTE_ORDER_MARK = "\ufeff"


def clean(text: str) -> str:
    """Returns the text in NFC, without leading byte order marks."""
    return unicodedata.normalize("NFC", text.lstrip(BYTE_ORDER_MARK))


def key(name: str) -> str:
    """Returns the form used to match file names: NFC, forward slashes, lower-case suffix."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    stem, suffix = posixpath.splitext(str(PurePosixPath(*map(clean, parts))))
    return stem + suffix.lower()


def leads_outside(name: str) -> bool:
    """Whether a name is an absolute path on any system, or contains ``..``."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or PureWindowsPath(name).is_absolute()


def is_picture(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in SUFFIXES


def walk(path: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder, the names of its folders and of its files, sorted; follows no links.

    Without hidden folders, and without the copies of file attributes that macOS leaves behind.
    """
    for folder, below, files in os.walk(path):
        below[:] = sorted(name for name in below if name[0] != "." and name != "__MACOSX")
        there = set(files)
        copies = {name for name in files if name.startswith("._") and name[2:] in there}
        yield Path(folder), below, sorted(there - copies)


class Folder:
    """Finds the files in a folder and its subfolders (`walk`) by name; thread-safe."""

    def __init__(self, path: Path):
        self.path = path

    @functools.cached_property
    def files(self) -> list[str]:
        """Names relative to the folder, sorted."""
        return sorted(
            (folder / file).relative_to(self.path).as_posix()
            for folder, _, files in walk(self.path)
            for file in files
        )

    @functools.cached_property
    def _by_key(self) -> dict[str, list[str]]:
        return _grouped((key(name), name) for name in self.files)

    @functools.cached_property
    def pictures_by_base(self) -> dict[str, list[str]]:
        """Image files by the last part of their stem."""
        named = self.pictures_by_stem.items()
        return _grouped((posixpath.basename(stem), name) for stem, of in named for name in of)

    @functools.cached_property
    def pictures_by_stem(self) -> dict[str, list[str]]:
        """Image files by stem, as `stem_of` returns it."""
        named = ((stem_of(name), name) for name in self.files if is_picture(name))
        return _grouped((stem, name) for stem, name in named if (self.path / name).is_file())

    def find(self, name: str) -> list[str]:
        """Returns the files that match ``name``: one, none, or several if it is ambiguous.

        The name may start with the name of the folder: images/a.jpg in the folder images.
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
        """Returns a file with a similar name, for messages."""
        loose = _grouped((_loose(PurePosixPath(n).name), n) for n in self.files)
        wanted = _loose(PurePosixPath(key(name)).name)
        if wanted in loose:
            return loose[wanted][0]
        if len(loose) > 10_000:  # comparing takes seconds
            return None
        close = difflib.get_close_matches(wanted, list(loose), n=1, cutoff=0.85)
        return loose[close[0]][0] if close else None


def stem_of(name: str) -> str:
    """Returns `key` without the file suffix."""
    return posixpath.splitext(key(name))[0]


def _loose(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Zs"))


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for group, name in pairs:
        found.setdefault(group, []).append(name)
    return found
