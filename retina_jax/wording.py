"""Numbers in messages."""

from __future__ import annotations


def counted(count: int | str, noun: str) -> str:
    """``1 image``, ``2 images``, ``no boxes``: a count, or a word for it, and its noun."""
    if count in (1, "1"):
        return f"1 {noun}"
    return f"{count} {noun}{'es' if noun.endswith(('s', 'x', 'tch')) else 's'}"
