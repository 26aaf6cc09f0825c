"""SGD and AdamW as torch runs them, warm-up, schedules, decay off norms, clipping."""

import jax
import ml_collections
import optax

from retina_jax.config import resolve
from retina_jax.models.resnet import is_frozen


def learning_rate_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Step to learning rate: linear warm-up times "step" or "cosine"."""
    optimizer = config.optimizer
    peak = resolve(config).learning_rate
    warmup = optimizer.warmup_steps
    if optimizer.schedule == "cosine":
        decay_steps = max(1, config.train.steps - warmup)
        main = optax.cosine_decay_schedule(peak, decay_steps)
    else:
        # join_schedules counts from the boundary: the decays are given from step 0
        boundaries = {at - warmup: optimizer.decay_factor for at in optimizer.decay_at}
        main = optax.piecewise_constant_schedule(peak, boundaries)
    if warmup == 0:
        return main
    ramp = optax.linear_schedule(peak * optimizer.warmup_factor, peak, warmup)
    return optax.join_schedules([ramp, main], [warmup])


def decay_mask(params, decay_biases: bool, frozen_stages: int = 0):
    """True for what weight decay shrinks: kernels, biases of convolutions if asked.

    No norm, and nothing of the backbone's frozen stages.
    """

    def decays(path, leaf) -> bool:
        *parents, name = [getattr(key, "key", str(key)) for key in path]
        if any("norm" in parent for parent in parents) or is_frozen(parents, frozen_stages):
            return False
        return name == "kernel" or decay_biases

    return jax.tree_util.tree_map_with_path(decays, params)


def build_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Clip, then SGD in torch's order (decay onto the gradient, momentum), or AdamW.

    The tree of its state depends on ``optimizer.name`` alone.

    What it gives is still to be scaled by minus the learning rate. The step does that, from its own
    number: a count of Optax's would stand still where an update is left out.
    """
    optimizer = config.optimizer
    # always there, so that the tree of a checkpoint is the same with and without clipping
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
