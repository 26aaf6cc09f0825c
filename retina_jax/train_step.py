"""(state, batch) -> (state, metrics): pure; it knows an axis name and nothing else of devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from retina_jax.losses import sigmoid_focal_loss, smooth_l1
from retina_jax.models.retinanet import RetinaNet, anchors_for, normalize
from retina_jax.targets import assign_targets
from retina_jax.types import Batch, Targets, TrainState


def classification_and_box_loss(
    logits: jax.Array, deltas: jax.Array, targets: Targets, config: ml_collections.ConfigDict
) -> tuple[jax.Array, jax.Array]:
    """Sums, not means, over all anchors of ``[n, a, classes]`` and ``[n, a, 4]``: two scalars."""
    one_hot = jax.nn.one_hot(targets.labels, logits.shape[-1])
    focal = sigmoid_focal_loss(logits, one_hot, config.loss.alpha, config.loss.gamma)
    classification = jnp.sum(jnp.where(targets.ignore[..., None], 0.0, focal))
    beta = config.loss.smooth_l1_beta if config.loss.box == "smooth_l1" else 0.0
    distance = smooth_l1(deltas, targets.deltas, beta)
    box = jnp.sum(jnp.where(targets.foreground[..., None], distance, 0.0))
    return classification, box


def init_state(model: RetinaNet, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Fresh weights of ``seed`` and a step of 0."""
    images = jnp.zeros((1, 64, 64, 3))
    init = jax.jit(lambda key: model.clone(axis_name=None).init(key, images, train=False))
    variables = init(jax.random.key(seed))
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
    )


def make_train_step(
    model: RetinaNet,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ml_collections.ConfigDict,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The step for one device's share of a batch, under ``model.axis_name`` (or none).

    Losses are divided by the foreground anchors of the *global* batch: sums over devices come
    first, the ratio after, so that the number of devices changes nothing. A step whose loss or
    gradient is not finite leaves weights and statistics as they were and says so in
    ``metrics["finite"]``.
    """
    matching = config.matching
    axis = model.axis_name

    def over_devices(tree):
        return jax.lax.psum(tree, axis) if axis else tree

    def train_step(state: TrainState, batch: Batch):
        images = normalize(batch.images, batch.sizes, config.data.mean, config.data.std)
        anchors = np.concatenate(anchors_for(config, batch.images.shape[1:3]))
        targets = jax.vmap(
            lambda truth: assign_targets(
                anchors,
                truth,
                matching.foreground_iou,
                matching.background_iou,
                matching.low_quality,
                config.coder_weights,
            )
        )(batch.ground_truth)
        foreground = over_devices(jnp.sum(targets.foreground, dtype=jnp.float32))
        normalizer = jnp.maximum(foreground, 1.0)

        def share_of_loss(params):
            (logits, deltas), updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            classification, box = classification_and_box_loss(
                jnp.concatenate(logits, axis=1), jnp.concatenate(deltas, axis=1), targets, config
            )
            classification, box = classification / normalizer, box / normalizer
            loss = classification + config.loss.box_weight * box
            return loss, (classification, box, updated.get("batch_stats", {}))

        (loss, (classification, box, batch_stats)), gradient = jax.value_and_grad(
            share_of_loss, has_aux=True
        )(state.params)
        gradient = over_devices(gradient)
        loss, classification, box = over_devices((loss, classification, box))

        directions, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        learning_rate = schedule(state.step)
        params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, directions)
        gradient_norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        moved = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        kept = state.replace(step=state.step + 1)
        new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, kept)
        metrics = {
            "loss": loss,
            "loss_classification": classification,
            "loss_box": box,
            "foreground_anchors": foreground,
            "gradient_norm": gradient_norm,
            "learning_rate": learning_rate,
            "finite": finite,
        }
        return new_state, metrics

    return train_step
