"""The input images of prediction (files, arrays, opened images), and the files of a path."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from retina_jax.data.deep import PixelScale
from retina_jax.data.images import (
    SUFFIXES,
    PictureError,
    array_pixels,
    picture_pixels,
    read_upright,
)
from retina_jax.errors import UserError

VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv".split())
"""Suffixes of video files."""


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """One image, which is read only when its turn comes."""

    name: str
    """For messages and output files: a path, or "image 3"."""
    source: Path | bytes | np.ndarray | Image.Image
    """A file; its content; an array (`data.images.array_pixels`); or an opened image."""

    def pixels(self, pixel_scale: PixelScale | None) -> np.ndarray:
        """RGB uint8 ``[h, w, 3]``, treated as `prepare` and training would.

        ``pixel_scale`` maps 16-bit and float values to 8 bits. Raises `PictureError` for an image
        that cannot be read.
        """
        if isinstance(self.source, Image.Image):
            return picture_pixels(self.source, pixel_scale)
        if isinstance(self.source, bytes):
            return read_upright(self.source, pixel_scale)
        if not isinstance(self.source, Path):
            return array_pixels(self.source, pixel_scale)
        try:
            encoded = self.source.read_bytes()
        except OSError as error:
            raise PictureError(f"cannot be read: {error.strerror}") from None
        return read_upright(encoded, pixel_scale)


@dataclasses.dataclass(frozen=True)
class Files:
    """The files that a path names."""

    root: Path
    """The folder that names are relative to."""
    paths: tuple[Path, ...]
    """Sorted."""


def find_files(
    given: str | Path,
    flag: str,
    suffixes: Collection[str] = SUFFIXES,
    without: Path | None = None,
) -> Files:
    """The files of a path: a file, a folder (with all folders in it), or a pattern with ``*``.

    Args:
      flag: names the path in messages.
      suffixes: of the files to take from a folder or pattern; hidden files are left out.
      without: a folder whose files are left out.

    Raises `UserError` if there are none.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return Files(path.parent, (path,))
    if path.is_dir():
        root, candidates = path, path.rglob("*")
        problem = "contains"
    elif glob.has_magic(str(given)):
        fixed = [p for p in path.parents if not glob.has_magic(str(p))]
        root = fixed[0]
        candidates = map(Path, glob.glob(str(path), recursive=True))
        problem = "matches"
    else:
        raise UserError(f"{flag}={given}: no such file or folder; set it to an existing one")
    taken = []
    for candidate in candidates:
        relative = candidate.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        outside = without is None or not candidate.absolute().is_relative_to(without.absolute())
        suited = candidate.suffix.lower() in suffixes
        if suited and outside and not hidden and candidate.is_file():
            taken.append(candidate)
    if not taken:
        kind = "image or video" if frozenset(suffixes) >= VIDEO_SUFFIXES else "image"
        raise UserError(
            f"{flag}={given} {problem} no files with the suffix of an {kind}, such as .jpg; set it "
            "to a folder with images"
        )
    return Files(root, tuple(sorted(taken, key=lambda p: p.parts)))
