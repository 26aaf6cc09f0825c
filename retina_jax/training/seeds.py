"""Several seeds as one program: `jax.vmap` of the training step over states with equal data.

The states are stacked: every array has a leading axis of seeds, except the step, which they share.
Targets and whatever else depends on the batch alone are computed once for all seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from retina_jax.types import Batch, TrainState


def stack(states: Sequence[TrainState]) -> TrainState:
    """One state ``[seeds, …]`` of host states at the same step; NumPy."""
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    return stacked.replace(step=np.asarray(states[0].step))


def unstack(states: TrainState, seed: int) -> TrainState:
    """The state of the seed at this position in a stacked state."""
    return jax.tree.map(lambda x: x[seed], states.replace(step=None)).replace(step=states.step)


def together(
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]],
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """``step`` (`training.step.make_train_step`) for a stacked state and one batch.

    The metrics are those of ``step`` with a leading axis of seeds. A seed whose loss is not finite
    keeps its weights; the others are not affected.
    """

    def stacked(states: TrainState, batch: Batch):
        def one(state):
            moved, metrics = step(state.replace(step=states.step), batch)
            return moved.replace(step=None), metrics

        moved, metrics = jax.vmap(one)(states.replace(step=None))
        return moved.replace(step=states.step + 1), metrics

    return stacked
