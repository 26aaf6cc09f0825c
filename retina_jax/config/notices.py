"""Warnings about a config that is valid but may surprise."""

from __future__ import annotations

import ml_collections

from retina_jax.config.fields import CLASSIFICATION_LOSSES, FIELDS
from retina_jax.config.values import leaves


def _losses_with(name: str) -> tuple[str, ...]:
    """Values of loss.classification whose function takes ``loss.<name>``."""
    return tuple(loss for loss, (_, fields) in CLASSIFICATION_LOSSES.items() if name in fields)


DELTAS = ("smooth_l1", "l1", "giou", "diou", "ciou")
"""Values of loss.box for which the box head predicts deltas, which the coder decodes."""
NEEDS: dict[str, tuple[str, tuple]] = {
    "data.pixel_budget": ("data.fit", (True,)),
    "coder.weights": ("loss.box", DELTAS),
    "coder.clamp": ("loss.box", DELTAS),
    "loss.alpha": ("loss.classification", _losses_with("alpha")),
    "loss.gamma": ("loss.classification", _losses_with("gamma")),
    "loss.beta": ("loss.classification", _losses_with("beta")),
    "loss.ohem_examples": ("loss.classification", ("ohem",)),
    "loss.ohem_nms_iou": ("loss.classification", ("ohem",)),
    "loss.ohem_negatives": ("loss.classification", ("ohem",)),
    "loss.ema_initial": ("loss.normalizer", ("ema",)),
    "loss.ema_momentum": ("loss.normalizer", ("ema",)),
    "loss.dfl_weight": ("loss.box", ("dfl",)),
    "loss.dfl_bins": ("loss.box", ("dfl",)),
    "loss.smooth_l1_beta": ("loss.box", ("smooth_l1",)),
    "optimizer.momentum": ("optimizer.name", ("sgd",)),
    "optimizer.decay_at": ("optimizer.schedule", ("step",)),
    "optimizer.decay_factor": ("optimizer.schedule", ("step", "plateau")),
    "optimizer.plateau_patience": ("optimizer.schedule", ("plateau",)),
    "eval.soft_nms": ("eval.nms", ("soft",)),
    "eval.soft_sigma": ("eval.nms", ("soft",)),
}
"""Fields that have an effect only with some values of another field."""


def notices(config: ml_collections.ConfigDict) -> list[str]:
    """Warnings about a valid config, one line each."""
    lines = []
    optimizer, steps = config.optimizer, config.train.steps
    if optimizer.warmup_steps >= steps:
        lines.append(
            f"optimizer.warmup_steps={optimizer.warmup_steps} does not end within "
            f"train.steps={steps}: the learning rate never reaches its peak"
        )
    if optimizer.schedule == "step" and not any(at < steps for at in optimizer.decay_at):
        lines.append(
            f"optimizer.decay_at={tuple(optimizer.decay_at)} is beyond train.steps={steps}: "
            "the learning rate never decays"
        )
    lines += _patience_notices(config)
    if config.model.norm == "frozen" and not config.model.init_from:
        lines.append(
            "model.norm=frozen without model.init_from: activations are never normalised, so "
            "random weights train badly; set --config.model.norm=batch to train from scratch"
        )
    if config.model.frozen_stages and not config.model.init_from:
        lines.append(
            f"model.frozen_stages={config.model.frozen_stages} without model.init_from: the frozen "
            "stages keep random weights; set --config.model.frozen_stages=0 to train from scratch"
        )
    return lines + _idle_notices(config)


def _idle_notices(config: ml_collections.ConfigDict) -> list[str]:
    """Fields that are not at their defaults, but that nothing reads."""
    values, lines = leaves(config), []
    for field in FIELDS:
        needed, having = NEEDS.get(field.name, ("", ()))
        value, default = values[field.name], field.default
        if needed and value != default and values[needed] not in having:
            lines.append(f"{field.name}={value} has no effect with {needed}={values[needed]}")
    return lines


def _patience_notices(config: ml_collections.ConfigDict) -> list[str]:
    """What waits for AP to stop improving, but has too few evaluations to notice it."""
    every, steps = config.eval.every, config.train.steps
    # an evaluation at the last step decides nothing more
    evaluations = (steps - 1) // every if every else 0
    waiting = []
    if config.train.patience:
        effect = "training never ends early"
        waiting.append(("train.patience", config.train.patience, effect))
    if config.optimizer.schedule == "plateau":
        effect = "the learning rate never decays"
        patience = config.optimizer.plateau_patience
        waiting.append(("optimizer.plateau_patience", patience, effect))
    lines = []
    for name, patience, effect in waiting:
        if evaluations <= patience:  # the first sets the AP to improve on
            most = (steps - 1) // (patience + 1)
            fix = f"; set --config.eval.every={most} or less" if most else ""
            lines.append(
                f"{name}={patience} needs {patience + 1} evaluations before the last step; there "
                f"are {evaluations} (eval.every={every}, train.steps={steps}): {effect}{fix}"
            )
    return lines
