"""The shell scripts that a job starts, in a checkout or an installed wheel."""

from __future__ import annotations

from pathlib import Path

from retina_jax.errors import UserError


def script(name: str) -> Path:
    """The path of a script, such as ``tpu/start.sh``."""
    package = Path(__file__).resolve().parents[1]
    places = [folder / "scripts" / name for folder in (package, package.parent)]
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"{places[0]} is missing; install retina_jax again")
