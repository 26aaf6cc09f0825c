"""Commands and flags as they are typed into a shell: what is printed for a user runs as printed."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """What starts this program: ``retina-jax`` where a shell finds it, else this Python."""
    found = shutil.which("retina-jax")
    if found and Path(found).parent == Path(sys.executable).parent:
        return "retina-jax"
    return f"{shlex.quote(sys.executable)} -m retina_jax.main"


def command(name: str, *arguments: object) -> str:
    """A whole command line; every argument quoted where a shell needs it."""
    return " ".join([program(), name, *(shlex.quote(str(a)) for a in arguments)])


def field_flag(name: str, value: object) -> str:
    """``--config.NAME=VALUE``, quoted where a shell needs it."""
    return f"--config.{name}={field_value(value)}"


def field_value(value: object) -> str:
    """A field's value as a flag takes it: numbers at full precision, tuples quoted."""
    if isinstance(value, tuple):
        return f"'{value}'".replace(" ", "")
    return shlex.quote(str(value)) if str(value) else "''"
