"""The moving average of the weights (`train.ema`), which evaluation and export use.

It covers parameters and running statistics, as in YOLO and torchvision's classification reference:
the activations of averaged weights have averaged statistics, not those of the newest weights.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from retina_jax.types import TrainState


def start(params: Any, batch_stats: Any) -> dict[str, Any]:
    """The average before the first update: a copy, because a step donates every array once."""
    return jax.tree.map(lambda x: x.copy(), {"params": params, "batch_stats": batch_stats})


def update(averaged: Any, params: Any, batch_stats: Any, step: jax.Array, ema: float) -> Any:
    """The average after the step that made ``params`` (the first is step 0); None if there is none.

    The decay of the t-th step is ``min(ema, (1 + t) / (10 + t))``: the warm-up of
    ``tf.train.ExponentialMovingAverage`` and of TF Model Garden, without which the random initial
    weights would weigh on the average for 1 / (1 - ema) steps. Arrays that do not change, such as
    frozen stages, keep their exact value.
    """
    if averaged is None:
        return None
    # 1 - decay, without the cancellation of 1 - 0.9998 in float32
    weight = jnp.maximum(1 - ema, 9 / (11 + step)).astype(jnp.float32)
    current = {"params": params, "batch_stats": batch_stats}
    return jax.tree.map(lambda old, new: old + weight * (new - old), averaged, current)


def variables_of(state: TrainState) -> dict[str, Any]:
    """``{"params": …, "batch_stats": …}`` for evaluation: the average, if the run keeps one."""
    if state.averaged is not None:
        return state.averaged
    return {"params": state.params, "batch_stats": state.batch_stats}


def begin(state: TrainState) -> TrainState:
    """``state`` with an average that starts from its weights."""
    return state.replace(averaged=start(state.params, state.batch_stats))


def with_weights(state: TrainState, weights: dict[str, Any]) -> TrainState:
    """``state`` with other weights, from which its average, if it keeps one, starts again."""
    state = state.replace(params=weights["params"], batch_stats=weights["batch_stats"])
    return state if state.averaged is None else begin(state)


def change(ema: float, stored: bool) -> str:
    """How ``train.ema`` changes the average in a checkpoint, for messages; "" if it does not."""
    if ema and not stored:
        start = "the average starts from its weights"
        return f"train.ema={ema}: the checkpoint has no averaged weights; {start}"
    if stored and not ema:
        return "train.ema=0: the averaged weights in the checkpoint are dropped"
    return ""
