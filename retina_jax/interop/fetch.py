"""Fetches published weights into the cache: resumed, verified, once for all processes.

Imports no JAX. A download grows in ``FILE.part``; ``FILE.part.json`` records which version of the
file it belongs to, so that a later request continues it only if the server still has that version.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from retina_jax.errors import RunError, UserError, is_disk_full
from retina_jax.files import atomic_write, cache_folder, open_path, write_json
from retina_jax.interop.catalogue import Published, find, is_name
from retina_jax.progress import ProgressBar, Reporter
from retina_jax.version import __version__

FOLDER = "weights"
"""The folder of fetched weights in `files.cache_folder`."""
STALLED_AFTER = 30.0
"""Seconds without a byte after which a connection is given up."""
PAUSE = 1.0
"""Seconds before a transfer that was cut off is continued."""
_CHUNK = 1 << 20
_POLL = 0.2  # seconds
_MAY_PASS = (408, 425, 429)
"""Client errors of HTTP that go away by themselves."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def weights_folder() -> Path:
    """The folder of fetched weights."""
    return cache_folder() / FOLDER


def weight_path(
    source: str | Path, field: str, report: Reporter | None = None, trust: bool = False
) -> Path:
    """Where weights are: the file of a name, which is fetched if it is missing; else ``source``.

    Args:
      source: a name in `interop.catalogue`, or a path.
      field: the flag or argument that has the value ``source``, for messages.
      trust: as for `fetch`.

    Raises `UserError` for an unknown name and an address that cannot be opened, and as `fetch`.
    """
    if is_name(str(source)):
        return fetch(find(str(source), field), report, trust)
    return open_path(source, field)


def fetch(of: Published, report: Reporter | None = None, trust: bool = False) -> Path:
    """The verified file of ``of``: from the cache, or fetched from its URL.

    Processes that ask for the same file wait for the one that fetches it. A file that is already
    there is verified, too; nothing is written then.

    Args:
      trust: use a file without a published hash, and print its SHA-256.

    Raises `UserError` for what a repetition would not change (a wrong hash, a missing file, a cache
    that cannot be written), `RunError` for a fault of the network. Both name the URL and the path.
    """
    report = report or Reporter()
    path = weights_folder() / of.path
    if of.digest is None and not trust:
        raise UserError(
            f"{of.name} has no published hash, so {of.url} cannot be verified; add --trust (in "
            f"Python, trust=True) to use it from there or from {path}"
        )
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path, report) as has_lock:
                if not path.is_file():
                    _fetch(of, path, has_lock, report)
        found = _digest(path, of.digest.algorithm if of.digest else "sha256")
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(
            f"cannot use {path} ({error.strerror or error}); set $RETINA_JAX_CACHE to a writable "
            f"folder, or to one that has {of.path} from {of.url} in its folder {FOLDER}"
        ) from None
    if of.digest is None:
        report.note(f"SHA-256 of {path} was not verified: {found}")
    elif not found.startswith(of.digest.digits):
        raise UserError(
            f"{path} has {of.digest.name} {found}, but {of.name} has {of.digest}; delete the file "
            f"to fetch {of.url}, or replace it"
        )
    return path


def _fetch(of: Published, path: Path, has_lock: bool, report: Reporter) -> None:
    """Creates ``path``. Without a lock, under a name that no other process uses."""
    size = "" if of.mebibytes is None else f"{of.mebibytes:.1f} MiB, "
    report.say(f"fetching {of.url} ({size}{of.licence}) to {path}")
    with atomic_write(path) as temporary:
        if has_lock:
            part = _Part(path.with_name(f"{path.name}.part"), of.url)
        else:
            part = _Part(temporary, of.url, is_kept=False)
        _download(of, part, path, report)
        if of.digest:
            found = _digest(part.path, of.digest.algorithm)
            if not found.startswith(of.digest.digits):
                part.remove()
                raise UserError(
                    f"{of.url} has {of.digest.name} {found}, but {of.name} has {of.digest}; the "
                    f"download was discarded; place the right file at {path}"
                )
        if has_lock:
            os.replace(part.path, temporary)
            part.remove()


def _digest(path: Path, algorithm: str) -> str:
    # usedforsecurity: some systems refuse MD5 otherwise
    new = functools.partial(hashlib.new, algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, new).hexdigest()


# one process at a time


@contextlib.contextmanager
def _alone(path: Path, report: Reporter) -> Iterator[bool]:
    """Waits until no other process fetches ``path``; yields False if the disk has no locks.

    The lock ends with its process. Its file stays, because removing it would let two processes
    lock two files of the same name.
    """
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        yield _lock(lock, path, report)


def _lock(lock: IO, path: Path, report: Reporter) -> bool:
    is_told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not is_told:
                report.say(f"waiting for another process, which fetches {path}")
                is_told = True
            time.sleep(_POLL)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise


# the transfer


class _Part:
    """The beginning of a file, and which version of the file it belongs to.

    ``validator`` is the server's name of the version (ETag or date), ``total`` its size in bytes;
    None if not known.
    """

    def __init__(self, path: Path, url: str, is_kept: bool = True):
        """``is_kept``: whether the next program may continue it."""
        self.path = path
        self.validator: str | None = None
        self.total: int | None = None
        self._url = url
        self._facts = path.with_name(f"{path.name}.json") if is_kept else None
        if self._facts:
            with contextlib.suppress(FileNotFoundError, ValueError):
                facts = json.loads(self._facts.read_text())
                if isinstance(facts, dict) and facts.get("url") == url:
                    self.validator, self.total = facts.get("validator"), facts.get("total")

    @property
    def size(self) -> int:
        """Bytes that can be continued."""
        if self.validator is None or not self.path.is_file():
            return 0
        return self.path.stat().st_size

    def begin(self, validator: str | None, total: int | None) -> None:
        """Starts again, with a version of the file."""
        self.remove()
        self.validator, self.total = validator, total
        if self._facts:
            facts = {"url": self._url, "validator": validator, "total": total}
            write_json(self._facts, facts)

    def remove(self) -> None:
        self.validator = self.total = None
        self.path.unlink(missing_ok=True)
        if self._facts:
            self._facts.unlink(missing_ok=True)


def _download(of: Published, part: _Part, path: Path, report: Reporter) -> None:
    """Completes ``part``; tries again as long as each attempt makes it longer."""
    if part.size and part.size == part.total:  # the program ended before it was verified
        return
    with _Bar(report, f"fetching {path.name}") as bar:
        while True:
            before = part.size
            try:
                if _transfer(of, part, path, bar):
                    return
                why = "the connection was cut off"
            except TimeoutError:
                why = f"no byte within {STALLED_AFTER:g} s"
            except (_NetworkError, http.client.HTTPException) as error:
                why = str(error) or type(error).__name__
            if part.size <= before:
                raise _fault(of, path, why)
            time.sleep(PAUSE)


class _NetworkError(Exception):
    """An `OSError` of the connection, not of the disk."""


class _Bar(contextlib.ExitStack):
    """A progress bar in megabytes, from the first response on, which tells the size."""

    def __init__(self, report: Reporter, title: str):
        super().__init__()
        self._report, self._title = report, title
        self._bar: ProgressBar | None = None
        self._shown = 0

    def show(self, size: int, total: int | None) -> None:
        """Shows numbers of bytes."""
        megabytes = round(size / 1e6)
        if self._bar is None:
            of = None if total is None else max(1, round(total / 1e6))
            self._bar = self.enter_context(self._report.progress(self._title, of, megabytes))
            self._shown = megabytes
        self._bar.advance("MB", by=megabytes - self._shown)
        self._shown = megabytes


def _transfer(of: Published, part: _Part, path: Path, bar: _Bar) -> bool:
    """One request for the rest, or the whole; whether ``part`` is complete afterwards."""
    with contextlib.ExitStack() as opened:
        response = opened.enter_context(_open(of, part, path))
        continues = _continues(response, part)
        if response.status == 206 and not continues:  # the rest of another version
            part.remove()
            response = opened.enter_context(_open(of, part, path))
        if not continues:
            length = response.headers.get("Content-Length", "")
            part.begin(_validator(response), int(length) if length.isdigit() else None)
        with part.path.open("ab") as file:
            done = file.tell()
            while chunk := _read(response):
                file.write(chunk)
                done += len(chunk)
                bar.show(done, part.total)
    return part.total in (None, done)


def _open(of: Published, part: _Part, path: Path) -> http.client.HTTPResponse:
    headers = {"User-Agent": f"retina_jax/{__version__}", "Accept-Encoding": "identity"}
    if part.size:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    request = urllib.request.Request(of.url, headers=headers)
    try:
        opener = urllib.request.build_opener()  # reads the variables of proxies
        return opener.open(request, timeout=STALLED_AFTER)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and part.size:  # no such range: start again
            part.remove()
            return _open(of, part, path)
        why = f"HTTP {error.code} {error.reason}"
        if error.code < 500 and error.code not in _MAY_PASS:
            raise UserError(
                f"cannot fetch {of.name} from {of.url} ({why}); download it elsewhere and place "
                f"it at {path}"
            ) from None
        raise _fault(of, path, why) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise TimeoutError from None
        raise _NetworkError(error.reason) from None
    except TimeoutError:
        raise
    except OSError as error:
        raise _NetworkError(error) from None


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except TimeoutError:
        raise
    except OSError as error:
        raise _NetworkError(error) from None


def _continues(response: http.client.HTTPResponse, part: _Part) -> bool:
    """Whether a response is the rest of ``part``: of the same version, from its last byte on."""
    if response.status != 206 or not part.size:
        return False
    span = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if span is None or int(span[1]) != part.size:
        return False
    same_size = span[2] == "*" or part.total in (None, int(span[2]))
    return same_size and _validator(response) in (None, part.validator)


def _validator(response: http.client.HTTPResponse) -> str | None:
    """What names this version of the file in a request with If-Range (RFC 9110, 13.1.5)."""
    tag = response.headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    return response.headers.get("Last-Modified")


def _fault(of: Published, path: Path, why: str) -> RunError:
    return RunError(
        f"cannot fetch {of.name} from {of.url} ({why}); run the same command again to continue, or "
        f"place the file at {path}"
    )
