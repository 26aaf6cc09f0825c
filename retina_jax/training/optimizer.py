"""SGD and AdamW in torch's order, warm-up, schedules, weight decay mask, clipping."""

import jax
import ml_collections
import numpy as np
import optax

from retina_jax.config import resolve
from retina_jax.models.backbone import is_frozen


def learning_rate_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Step to learning rate: linear warm-up, then "step", "cosine" or "plateau".

    Plateau's is constant: it depends on AP, so the training step multiplies it by a number in the
    state (`TrainState.rate_factor`).
    """
    optimizer = config.optimizer
    peak = resolve(config).learning_rate
    warmup = optimizer.warmup_steps
    if optimizer.schedule == "cosine":
        decay_steps = max(1, config.train.steps - warmup)
        main = optax.cosine_decay_schedule(peak, decay_steps)
    elif optimizer.schedule == "plateau":
        main = optax.constant_schedule(peak)
    else:
        # join_schedules restarts the count at the boundary; decay_at counts from step 0
        boundaries = {at - warmup: optimizer.decay_factor for at in optimizer.decay_at}
        main = optax.piecewise_constant_schedule(peak, boundaries)
    if warmup == 0:
        return main
    ramp = optax.linear_schedule(peak * optimizer.warmup_factor, peak, warmup)
    return optax.join_schedules([ramp, main], [warmup])


def decayed_factor(factor: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
    """`TrainState.rate_factor`, a float32 scalar, after one more decay of the plateau schedule."""
    return np.asarray(factor, np.float32) * np.float32(config.optimizer.decay_factor)


def decay_mask(params, decay_biases: bool, frozen_stages: int = 0):
    """True for parameters with weight decay: kernels and, with ``decay_biases``, biases.

    Norms and the backbone's frozen stages are never decayed.
    """

    def decays(path, leaf) -> bool:
        *parents, name = [getattr(key, "key", str(key)) for key in path]
        if any("norm" in parent for parent in parents) or is_frozen(parents, frozen_stages):
            return False
        return name == "kernel" or decay_biases

    return jax.tree_util.tree_map_with_path(decays, params)


def build_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Gradient clipping, then SGD in torch's order (weight decay, momentum), or AdamW.

    The tree of the optimiser state depends only on ``optimizer.name``.

    The caller must scale the updates by minus the learning rate. The training step does this with
    its own step number, because Optax's counter would not advance when an update is skipped.
    """
    optimizer = config.optimizer
    # always present, so that checkpoints have the same tree with and without clipping
    clip = optax.identity()
    if optimizer.clip_norm:
        clip = optax.clip_by_global_norm(optimizer.clip_norm)
    decay = optax.identity()
    if optimizer.weight_decay:
        decay = optax.add_decayed_weights(
            optimizer.weight_decay,
            lambda params: decay_mask(params, optimizer.decay_biases, config.model.frozen_stages),
        )
    if optimizer.name == "adamw":
        return optax.chain(clip, optax.scale_by_adam(), decay)
    return optax.chain(clip, decay, optax.trace(decay=optimizer.momentum))
