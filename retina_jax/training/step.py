"""(state, batch) -> (state, metrics): pure; knows nothing about devices except the axis name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from retina_jax.models.retinanet import RetinaNet
from retina_jax.training import averaging
from retina_jax.training.gradient import make_gradient
from retina_jax.types import Batch, GroundTruth, TrainState


def init_state(
    model: RetinaNet,
    optimizer: optax.GradientTransformation,
    config: ml_collections.ConfigDict,
) -> TrainState:
    """The state at step 0, with weights initialised from ``config.seed``.

    One program: the optimiser's zeros alone would be one for each shape, too small to be kept for
    a restart.
    """
    return jax.jit(_init(model, optimizer, config))(jax.random.key(config.seed))


def state_shapes(
    model: RetinaNet,
    optimizer: optax.GradientTransformation,
    config: ml_collections.ConfigDict,
) -> TrainState:
    """`init_state` as `jax.ShapeDtypeStruct`, without any computation."""
    return jax.eval_shape(_init(model, optimizer, config), jax.random.key(config.seed))


def variable_shapes(model: RetinaNet) -> dict[str, Any]:
    """``{"params": …, "batch_stats": …}`` of a network as `jax.ShapeDtypeStruct`."""
    variables = jax.eval_shape(lambda key: _init_variables(model, key), jax.random.key(0))
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def batch_shapes(config: ml_collections.ConfigDict, bucket: tuple[int, int], images: int) -> Batch:
    """The `Batch` of ``images`` images in a bucket (height, width), as shapes."""

    def shape(dtype: Any, *dimensions: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((images, *dimensions), dtype)

    truth = GroundTruth.empty(images, config.data.max_boxes)
    return Batch(
        images=shape(np.float32 if config.data.float_pixels else np.uint8, *bucket, 3),
        sizes=shape(np.int32, 2),
        original_sizes=shape(np.int32, 2),
        ground_truth=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), truth),
        index=shape(np.int32),
        example_mask=shape(bool),
        cut_away=shape(np.int32),
    )


def _init(
    model: RetinaNet, optimizer: optax.GradientTransformation, config: ml_collections.ConfigDict
) -> Callable[[jax.Array], TrainState]:
    return lambda key: _state_of(_init_variables(model, key), optimizer, config)


def _init_variables(model: RetinaNet, key: jax.Array) -> dict[str, Any]:
    return model.clone(axis_name=None).init(key, jnp.zeros((1, 64, 64, 3)), train=False)


def _state_of(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    config: ml_collections.ConfigDict,
) -> TrainState:
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        loss_normalizer=jnp.asarray(config.loss.ema_initial, jnp.float32),
        averaged=averaging.start(params, batch_stats) if config.train.ema else None,
        rate_factor=jnp.ones(()) if config.optimizer.schedule == "plateau" else None,
    )


def make_train_step(
    model: RetinaNet,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ml_collections.ConfigDict,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The training step for one device's share of a batch, under ``model.axis_name`` (or none).

    Quantities are summed over devices before they are divided (`objective.normalize`), so the
    result does not depend on the number of devices. If the loss or gradient is not finite, weights,
    their average and statistics are unchanged and ``metrics["finite"]`` is False. The metrics are
    scalars, except ``by_level`` (`gradient.LossParts`); `metrics.by_name` names its values.
    """
    gradient_of = make_gradient(model, config)

    def train_step(state: TrainState, batch: Batch):
        found = gradient_of(state, batch)
        gradient, parts = found.gradient, found.parts
        directions, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        learning_rate = schedule(state.step)
        if state.rate_factor is not None:
            learning_rate *= state.rate_factor
        params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, directions)
        gradient_norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(parts.loss) & jnp.isfinite(gradient_norm)
        moved = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=found.batch_stats,
            opt_state=opt_state,
            loss_normalizer=found.loss_normalizer,
            averaged=averaging.update(
                state.averaged, params, found.batch_stats, state.step, config.train.ema
            ),
            rate_factor=state.rate_factor,
        )
        kept = state.replace(step=state.step + 1)
        new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, kept)
        metrics = {
            "loss": parts.loss,
            "loss_classification": parts.classification,
            "loss_box": parts.box,
            **{f"loss_{name}": loss for name, loss in parts.extra.items()},
            "foreground_anchors": parts.foreground,
            "by_level": parts.by_level,
            "gradient_norm": gradient_norm,
            "learning_rate": learning_rate,
            "finite": finite,
        }
        return new_state, metrics

    return train_step
