"""The log of a run's errors in its workdir; does not import JAX."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterator
from pathlib import Path

from retina_jax.files import is_address, os_errors, write_text

FILE = "errors.jsonl"
_LONGEST = 2000  # characters


def record_error(folder: Path, text: str) -> None:
    """Appends a line with the time; ignores a disk that cannot be written."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = json.dumps({"time": now, "error": " ".join(text.split())[:_LONGEST]})
    path = folder / FILE
    with contextlib.suppress(OSError), os_errors(path):
        if is_address(path):  # objects are not appended to
            before = path.read_text() if path.exists() else ""
            write_text(path, before + line + "\n")
            return
        with path.open("a") as file:
            file.write(line + "\n")


@contextlib.contextmanager
def errors_recorded(folder: Path, here: bool) -> Iterator[None]:
    """Records an error that leaves the block, if this process is the one that writes (``here``)."""
    try:
        yield
    except Exception as error:
        if here:
            record_error(folder, str(error) or repr(error))
        raise
