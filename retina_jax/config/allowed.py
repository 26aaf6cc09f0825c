"""The rules for the values of config fields, as error messages state them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from retina_jax.config.augmentations import PRESETS


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The values a field may have: the rule as error messages state it, and the check."""

    rule: str
    holds: Callable[[object], bool]
    fix: object = None
    """The value that the error suggests; None: the default."""


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def one_of(*choices: object) -> Allowed:
    listed = ", ".join(map(str, choices))
    return Allowed(f"must be one of {listed}", lambda v: v in choices, choices[0])


def numbers(rule: str = "", holds: Callable = lambda v: True, fix: object = None) -> Allowed:
    """A tuple of finite numbers, for which ``holds`` is true."""
    return Allowed(
        rule or "must contain only finite numbers",
        lambda v: all(map(_finite, v)) and holds(v),
        fix,
    )


def positive(count: int) -> Allowed:
    return numbers(
        f"must be {count} numbers above 0", lambda v: len(v) == count and all(x > 0 for x in v)
    )


ANY = Allowed("", lambda v: True)
ABOVE_0 = Allowed("must be above 0", lambda v: v > 0)
FROM_0 = Allowed("must be 0 or more", lambda v: v >= 0)
SHARE = Allowed("must lie between 0 and 1", lambda v: 0 <= v <= 1)
DECAY = Allowed("must be 0 or more and below 1", lambda v: 0 <= v < 1, 0.9998)
INSIDE = Allowed("must lie strictly between 0 and 1", lambda v: 0 < v < 1)
THREE = numbers("must be 3 numbers", lambda v: len(v) == 3)
SOME = numbers("must contain at least one number", lambda v: len(v) > 0)
SOME_POSITIVE = numbers(
    "must contain at least one number, all above 0", lambda v: len(v) > 0 and min(v) > 0
)
LIMITS = numbers(
    "must be three whole numbers above 0, in ascending order",
    lambda v: len(v) == 3 and all(isinstance(x, int) for x in v) and 0 < v[0] < v[1] < v[2],
)
SIDES = numbers("must be pixels, 1 or more", lambda v: all(x >= 1 for x in v), (640, 800))
FACTORS = numbers("must be two factors, low and high", lambda v: len(v) == 2 and 0 < v[0] <= v[1])
PRESET = Allowed(
    f"must be empty or one of {', '.join(PRESETS)}", lambda v: v in ("", *PRESETS), "light"
)
JITTER = numbers(
    "must be four strengths of 0 to 1, the last (hue) at most 0.5",
    lambda v: len(v) == 4 and all(0 <= x <= 1 for x in v) and v[3] <= 0.5,
    (0.4, 0.4, 0.4, 0.1),
)
