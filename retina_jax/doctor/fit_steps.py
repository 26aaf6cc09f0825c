"""Chooses the length of a training run from the number of images, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Any

import ml_collections

_EVALUATIONS = 10
_LEAST = 50  # steps between evaluations


def fit_steps(images: int, batch_size: int) -> int:
    """Steps for ``images`` training images: 560 · √images images, in steps of ``batch_size``.

    Rounded to 50, at least 300. The number of epochs falls with the size of the data set: at 8
    images per step, 200 images get 1,000 steps (40 epochs), and 5,000 get 4,950 (8 epochs).
    """
    steps = 70 * math.sqrt(images) * 8 / batch_size
    return max(300, 50 * round(steps / 50))


def fit_schedule(config: ml_collections.ConfigDict, free: Set[str]) -> dict[str, Any]:
    """Values of the ``free`` fields that follow from ``train.steps``.

    Ten evaluations, at least 50 steps apart, with a checkpoint at each; warm-up for a tenth of
    the steps at most; decays
    after two thirds and eight ninths (the paper's 60k and 80k of 90k steps).
    """
    steps = config.train.steps
    every = max(_LEAST, math.ceil(steps / _EVALUATIONS))
    fields = {
        "eval.every": every,
        "train.checkpoint_every": every,
        "optimizer.warmup_steps": min(config.optimizer.warmup_steps, steps // 10),
    }
    if config.optimizer.schedule == "step":
        fields["optimizer.decay_at"] = (round(steps * 2 / 3), round(steps * 8 / 9))
    return {name: value for name, value in fields.items() if name in free}
