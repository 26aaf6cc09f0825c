"""The steps that ``--profile`` records; imports no JAX, to report usage errors at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Iterable

from retina_jax.errors import UserError
from retina_jax.wording import counted

_WARM_UP = 10
"""Steps before a recording without a given first step: queues fill, clock rates settle."""


@dataclasses.dataclass(frozen=True)
class ProfiledSteps:
    """A number of steps to record, from a given first step or after warm-up."""

    count: int
    first: int | None = None

    @classmethod
    def parse(cls, text: str) -> ProfiledSteps:
        """Parses "COUNT" or "FIRST:LAST" (inclusive). Raises `UserError`."""
        match = re.fullmatch(r"(?:(\d+):)?(\d+)", text.strip())
        first, last = (int(match[1] or 1), int(match[2])) if match else (0, 0)
        if not 0 < first <= last:
            raise UserError(
                f"--profile={text} selects no steps; set --profile=10 for ten steps after warm-up, "
                "or --profile=100:110 for steps 100 to 110"
            )
        if match[1]:
            return cls(last - first + 1, first)
        return cls(last)

    @property
    def last(self) -> int | None:
        return None if self.first is None else self.first + self.count - 1

    def check(self, steps: int) -> None:
        """Raises `UserError` if a run of ``steps`` steps ends before the last of them."""
        last = self.count if self.last is None else self.last
        if last > steps:
            value = f"{self.first}:{last}" if self.first else str(last)
            raise UserError(
                f"--profile={value} exceeds config.train.steps={steps}; record earlier steps, "
                f"or set --config.train.steps={last} or more"
            )

    def place(
        self,
        begun: int,
        steps: int,
        shape_at: Callable[[int], Hashable],
        ends_with_evaluation: Callable[[int], bool],
        compiled: Iterable[Hashable] = (),
    ) -> tuple[range, str]:
        """The steps to record in a run that continues after step ``begun``, and a notice or "".

        They are the first consecutive steps without a compilation or an evaluation between them,
        which would fill the recording.

        Args:
          steps: the last step of the run.
          shape_at: the input shape of a step; the first step with a new shape compiles.
          ends_with_evaluation: whether an evaluation follows a step.
          compiled: shapes that need no compilation.
        """
        count, start = self.count, self.first
        if start is None:
            start = max(begun + 1, min(begun + 1 + _WARM_UP, steps - count + 1))
        elif start <= begun:
            count -= begun + 1 - start
            start = begun + 1
            if count < 1:
                asked = named(range(self.first, self.last + 1))
                return range(0), (
                    f"--profile: the run continues after step {begun}, so {asked} cannot be "
                    "recorded"
                )
        seen = {*compiled, *(shape_at(step) for step in range(begun + 1, start))}
        planned, new = start, set()
        for step in range(start, steps + 1):
            new.add(shape_at(step))
            if not new <= seen:
                seen |= new
                start, new = step + 1, set()
            elif step - start + 1 == count:
                break
            elif ends_with_evaluation(step):
                seen |= new
                start, new = step + 1, set()
        else:
            return range(0), (
                f"--profile: the rest of the run has no {counted(count, 'step')} in a row without "
                "a compilation or an evaluation, so nothing is recorded; record fewer steps"
            )
        found = range(start, start + count)
        if self.first is None or (start == planned == self.first and count == self.count):
            return found, ""
        return found, (
            f"--profile: recording {named(found)} instead of "
            f"{named(range(self.first, self.last + 1))}, to leave out past steps, compilation "
            "and evaluation"
        )


def named(steps: range) -> str:
    """ "steps 3 to 5", or "step 3"."""
    if len(steps) == 1:
        return f"step {steps[0]}"
    return f"steps {steps[0]} to {steps[-1]}"
