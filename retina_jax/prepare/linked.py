"""Links that lead out of a tree: a downloaded data set must not read elsewhere."""

from __future__ import annotations

from pathlib import Path

from retina_jax.errors import UserError


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path, its links followed, lies below ``root``, which is resolved."""
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a ring of links
        return False


def check_inside(path: Path, root: Path, follow_links: bool) -> None:
    """`UserError` for a link that leads out of ``root``, unless it may."""
    if not follow_links and not is_inside(path, root.resolve()):
        raise UserError(f"{path}: is a link out of {root}; add --follow-links if you trust it")
