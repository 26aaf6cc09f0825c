"""What becomes of records that cannot be used, and of pictures that need a choice."""

from __future__ import annotations

import dataclasses
import math

from retina_jax.errors import UserError

ADVICE = (
    "--on-bad=skip leaves such records out, up to --max-bad=SHARE of all; --allow-truncated keeps "
    "cut JPEGs that can be decoded"
)


class RecordError(UserError):
    """A record that cannot be used; ``--on-bad=skip`` leaves it out."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """The text with what would not show, or would break the line, as an escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dataclasses.dataclass(frozen=True)
class Handling:
    """What the flags of ``prepare`` choose; the defaults are the flags'."""

    skip_bad: bool = False
    max_bad: float = 0.01
    """Largest share of all records that ``skip_bad`` may leave out."""
    allow_truncated: bool = False
    """Keep cut JPEGs that the decoder can finish."""
    pixel_scale: tuple[float, float] | None = None
    """Values of 16-bit and float pictures that become 0 and 255; None: not chosen yet."""

    def __post_init__(self):
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"--max-bad={self.max_bad} must be a share from 0 to 1, such as 0.01")
        low, high = self.pixel_scale or (0, 1)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(
                f"--pixel-range={low:g},{high:g} must be two numbers, the smaller first, such as "
                "0,4095"
            )


@dataclasses.dataclass
class LeftOut:
    """Records of a split that were left out, one line each; without ``skip`` the first raises."""

    skip: bool = False
    lines: list[str] = dataclasses.field(default_factory=list)

    def add(self, error: RecordError) -> None:
        if not self.skip:
            raise error
        self.lines.append(str(error))
