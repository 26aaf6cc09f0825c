"""What the evaluations of a run decide: when training ends early, when the learning rate decays.

Every decision is a function of the recorded AP values alone. A checkpoint stores them, so a run
that was killed, or that goes back to an older checkpoint, decides like an undisturbed one, and all
hosts decide alike. Does not import JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

HISTORY_NOTE = "history"
"""Note of a checkpoint: `History.to_json` up to its step."""
Evaluation = tuple[int, float]
"""Step and AP."""


@dataclasses.dataclass(frozen=True)
class History:
    """The evaluations of a run up to a step, and the decays that followed from them."""

    evaluations: tuple[Evaluation, ...] = ()
    """By step; only those that have an AP."""
    decays: tuple[int, ...] = ()
    """The steps of the evaluations at which the learning rate decayed."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | None) -> History:
        """The inverse of `to_json`; None, in checkpoints of earlier versions: an empty history."""
        content = content or {}
        evaluations = content.get("evaluations", ())
        return cls(
            tuple((int(step), float(ap)) for step, ap in evaluations),
            tuple(map(int, content.get("decays", ()))),
        )

    def to_json(self) -> dict[str, Any]:
        return {"evaluations": [list(pair) for pair in self.evaluations],
                "decays": list(self.decays)}  # fmt: skip

    def evaluated(self, step: int, average_precision: float) -> History:
        """This history and one more evaluation; adding the last one again changes nothing."""
        if self.evaluations and step <= self.evaluations[-1][0]:
            return self
        return dataclasses.replace(self, evaluations=(*self.evaluations, (step, average_precision)))

    def decayed(self, step: int) -> History:
        """This history and a decay at the evaluation of ``step``."""
        return dataclasses.replace(self, decays=(*self.decays, step))

    @property
    def best(self) -> Evaluation | None:
        """The first evaluation with the highest AP; None as long as every AP is 0.

        A detector that has not found anything yet has not stopped improving.
        """
        best = max(self.evaluations, key=lambda pair: pair[1], default=(0, 0.0))
        return best if best[1] > 0 else None

    def since_best(self, after: int = 0) -> int:
        """Number of evaluations without a new best AP, counting only those after a step."""
        if self.best is None:
            return 0
        after = max(after, self.best[0])
        return sum(step > after for step, _ in self.evaluations)

    def ends(self, patience: int) -> bool:
        """Whether training ends after the last evaluation (``train.patience``; 0: never)."""
        return 0 < patience <= self.since_best()

    def decay_due(self, patience: int) -> bool:
        """Whether the learning rate decays after the last evaluation.

        ``patience`` (``optimizer.plateau_patience``) counts evaluations since the best one and
        since the last decay, as in Keras and Optax; torch's ReduceLROnPlateau allows one more.
        """
        return self.since_best(max(self.decays, default=0)) >= patience
