"""How to handle unusable records, and images that need a decision."""

from __future__ import annotations

import dataclasses
import math

from retina_jax.errors import UserError

ADVICE = (
    "set --on-bad=skip to leave out such records, up to --max-bad=SHARE of all, or "
    "--allow-truncated to keep truncated JPEGs"
)


class RecordError(UserError):
    """An unusable record; ``--on-bad=skip`` leaves it out."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Returns the text with non-printable characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dataclasses.dataclass(frozen=True)
class Handling:
    """The options of ``prepare``, with the defaults of its flags."""

    skip_bad: bool = False
    max_bad: float = 0.01
    """The largest share of records that ``skip_bad`` may leave out."""
    allow_truncated: bool = False
    """Keep truncated JPEGs that can be decoded."""
    pixel_scale: tuple[float, float] | None = None
    """Values of 16-bit and float images that become 0 and 255; None if not chosen yet."""

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
    """Collects the records left out of a split; without ``skip``, the first one raises."""

    skip: bool = False
    lines: list[str] = dataclasses.field(default_factory=list)

    def add(self, error: RecordError) -> None:
        if not self.skip:
            raise error
        self.lines.append(str(error))
