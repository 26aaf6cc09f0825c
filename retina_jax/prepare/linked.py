"""Links that lead outside a tree: a downloaded data set must not expose other files."""

from __future__ import annotations

from pathlib import Path

from retina_jax.errors import UserError


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path is inside the resolved ``root`` after following its links."""
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a ring of links
        return False


def check_inside(path: Path, root: Path, follow_links: bool) -> None:
    """Raises `UserError` for a link that leads outside ``root``, unless links are allowed."""
    if not follow_links and not is_inside(path, root.resolve()):
        raise UserError(
            f"{path}: is a link that leads outside {root}; if you trust it, use the prepare "
            "command with --follow-links"
        )
