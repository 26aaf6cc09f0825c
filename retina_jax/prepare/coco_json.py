"""Read COCO JSON as `Annotations`."""

from __future__ import annotations

import json
from pathlib import Path

from retina_jax.errors import UserError
from retina_jax.prepare.annotations import Annotations, check
from retina_jax.prepare.handling import LeftOut


def read_coco(path: Path, left_out: LeftOut | None = None) -> Annotations:
    """Reads a COCO JSON file. Raises `UserError` that names the file and the faulty record."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"--annotations {path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not COCO JSON ({error})") from None
    return check(path, content, left_out)
