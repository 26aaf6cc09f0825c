"""Copies a data set from an object store to disk.

Every epoch reads every image by random access, which would take one request per image.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import shutil
from pathlib import Path

from retina_jax import files
from retina_jax.errors import UserError
from retina_jax.files import StoredObject
from retina_jax.progress import Reporter

_AT_ONCE = 8  # files
_SPARE = 1 << 30  # bytes of the disk that stay free


def local_copy(directory: Path, split: str, report: Reporter | None = None) -> Path:
    """``directory``, or for an address, a local folder with its metadata and one of its splits.

    The folder is in `files.cache_folder`, under a digest of names, sizes and checksums, so a
    changed data set gets another folder. Each file is compared with its object and renamed when it
    is complete, so processes can share the folder, and an interrupted copy resumes.

    Raises `UserError` if there is too little space.
    """
    if not files.is_address(directory):
        return directory
    report = report or Reporter()
    objects = files.list_objects(directory)
    digest = hashlib.sha256(repr((str(directory), objects)).encode()).hexdigest()[:16]
    folder = files.cache_folder() / "data" / digest / directory.parent.name / directory.name
    missing = [x for x in objects if _is_needed(x.name, split) and not _is_there(folder, x)]
    if not missing:
        return folder
    size = sum(x.size for x in missing)
    try:
        files.make_folder(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"{folder}: {error}; set $RETINA_JAX_CACHE to a folder on disk") from None
    if size + _SPARE > free:
        raise UserError(
            f"{directory}, split {split}, takes {size / 1e9:.1f} GB, but {folder}, where it is "
            f"copied to, has only {free / 1e9:.1f} GB free; set $RETINA_JAX_CACHE to a folder on "
            "a larger disk"
        )
    report.say(f"copying split {split} of {directory} to {folder}: {size / 1e6:.0f} MB")
    title = f"copying {split}"
    with (
        report.progress(title, max(1, round(size / 1e6))) as bar,
        concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as threads,
    ):
        done = counted = 0
        try:
            for copied in threads.map(lambda x: _copy(directory, folder, x), missing):
                done += copied
                bar.advance("MB", by=round(done / 1e6) - counted)
                counted = round(done / 1e6)
        except OSError:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return folder


def _is_needed(name: str, split: str) -> bool:
    """Whether a file is metadata, or belongs to ``split``."""
    if name.startswith("index_"):
        return name == f"index_{split}.npz"
    return ".array_record" not in name or f"-{split}.array_record" in name


def _is_there(folder: Path, of: StoredObject) -> bool:
    path = folder / of.name
    return path.is_file() and path.stat().st_size == of.size


def _copy(directory: Path, folder: Path, of: StoredObject) -> int:
    with files.atomic_write(folder / of.name) as temporary:
        files.download(directory / of.name, temporary, of)
    return of.size
