"""Commands and flags, quoted for a shell: users can paste what the program prints."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """The command that starts this program: ``retina-jax`` if on the PATH, else this Python."""
    found = shutil.which("retina-jax")
    if found and Path(found).parent == Path(sys.executable).parent:
        return "retina-jax"
    return f"{shlex.quote(sys.executable)} -m retina_jax.main"


def command(name: str, *arguments: object) -> str:
    """A complete command line, with arguments quoted where a shell needs it."""
    return " ".join([program(), name, *(shlex.quote(str(a)) for a in arguments)])


def field_flag(name: str, value: object) -> str:
    """``--config.NAME=VALUE``, quoted where a shell needs it."""
    return f"--config.{name}={field_value(value)}"


def field_value(value: object) -> str:
    """A field's value as a flag accepts it: numbers at full precision, tuples quoted."""
    if isinstance(value, tuple):
        return f"'{value}'".replace(" ", "")
    return shlex.quote(str(value)) if str(value) else "''"
