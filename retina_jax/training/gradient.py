"""The loss of a global batch and its gradient, from the whole batch or from micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float

from retina_jax.config.values import target_arguments
from retina_jax.models.retinanet import RetinaNet, anchors_for, normalize_images, strides_for
from retina_jax.ops.anchors import LEVELS, pyramid_grids
from retina_jax.ops.targets import assign_targets
from retina_jax.training import objective
from retina_jax.types import Array, Batch, Targets, TrainState


@flax.struct.dataclass
class LossParts:
    """The loss of the global batch, or the part of it that some of its images contribute."""

    loss: Float[Array, ""]
    classification: Float[Array, ""]
    box: Float[Array, ""]
    foreground: Float[Array, ""]
    """Number of foreground anchors."""
    by_level: Float[Array, "rows levels"]
    """``classification``, ``box``, ``foreground`` and ``extra`` of each pyramid level: one array,
    so that the sum over devices is one more, not one for each."""
    extra: dict[str, Float[Array, ""]]
    """Of `objective.extra_terms`, by name, without their weights in ``loss``."""


@flax.struct.dataclass
class BatchGradient:
    """What a step needs from the global batch; equal on all devices."""

    gradient: Any
    """With respect to ``state.params``."""
    parts: LossParts
    loss_normalizer: Float[Array, ""]
    """The next ``state.loss_normalizer``."""
    batch_stats: Any
    """The next ``state.batch_stats``."""


def image_losses_of(
    model: RetinaNet,
    config: ml_collections.ConfigDict,
    params: Any,
    batch_stats: Any,
    images: Array,
    targets: Targets,
    anchors: np.ndarray,
) -> tuple[objective.ImageLosses, Any]:
    """A forward pass in training: the sums of the losses by image, and the next statistics.

    Takes normalised images ``[n, h, w, 3]``, their targets and the anchors of all levels.
    """
    predictions, updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
    )
    strides = strides_for(config, images.shape[1:3])
    sums = objective.image_losses(predictions, targets, anchors, config, strides)
    return sums, updated.get("batch_stats", {})


def make_gradient(
    model: RetinaNet, config: ml_collections.ConfigDict
) -> Callable[[TrainState, Batch], BatchGradient]:
    """``(state, batch) -> BatchGradient`` for one device's share of a batch.

    With ``train.accumulate`` above 1, the images go through the network in that many micro-batches:
    memory holds the activations of one. The share must be divisible by it
    (`parallel.Devices.check_batch`). Losses are divided by the counts of the whole batch, so the
    result is that of the whole batch up to rounding, except that batch norm normalises with the
    statistics of a micro-batch and updates its running statistics after each.
    """
    target_options = target_arguments(config)
    axis, count = model.axis_name, config.train.accumulate

    def over_devices(tree):
        return jax.lax.psum(tree, axis) if axis else tree

    def anchors_of(batch: Batch) -> np.ndarray:
        return np.concatenate(anchors_for(config, batch.images.shape[-3:-1]))

    def targets_of(batch: Batch, anchors: np.ndarray) -> Targets:
        grids = pyramid_grids(batch.images.shape[-3:-1])
        return jax.vmap(lambda truth: assign_targets(anchors, truth, grids, **target_options))(
            batch.ground_truth
        )

    def share(
        state: TrainState,
        batch: Batch,
        targets: Targets | None = None,
        counts: objective.BatchCounts | None = None,
    ) -> BatchGradient:
        """This device's share from the images in ``batch``, divided by the batch's ``counts``.

        None: ``batch`` is the device's whole share, so the counts are its own, over devices.
        """
        images = normalize_images(batch.images, batch.sizes, config.data)
        anchors = anchors_of(batch)
        if targets is None:
            targets = targets_of(batch, anchors)

        def share_of_loss(params):
            sums, batch_stats = image_losses_of(
                model, config, params, state.batch_stats, images, targets, anchors
            )
            whole = counts
            if whole is None:
                whole = objective.batch_counts(
                    sums.foreground, sums.selected, sums.box_weight, over_devices
                )
            losses, loss_normalizer = objective.normalize(
                sums, whole, state.loss_normalizer, config
            )
            loss = losses.total(config)
            by_level = objective.normalize_levels(sums, whole, state.loss_normalizer, config)
            parts = LossParts(
                loss=loss,
                classification=losses.classification,
                box=losses.box,
                foreground=sums.foreground.sum(),
                by_level=by_level,
                extra=losses.extra,
            )
            return loss, (parts, loss_normalizer, batch_stats)

        (_, (parts, loss_normalizer, batch_stats)), gradient = jax.value_and_grad(
            share_of_loss, has_aux=True
        )(state.params)
        return BatchGradient(gradient, parts, loss_normalizer, batch_stats)

    def accumulated(state: TrainState, batch: Batch) -> BatchGradient:
        """This device's share of the whole batch, by micro-batches."""

        def micro_batch(number) -> Batch:
            # every count-th image: the same micro-batches on any number of devices
            return jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(
                    x.reshape(-1, count, *x.shape[1:]), number, axis=1, keepdims=False
                ),
                batch,
            )

        def first_pass(number):
            """Targets, and what `objective.batch_counts` needs of each image."""
            batch = micro_batch(number)
            anchors = anchors_of(batch)
            targets = targets_of(batch, anchors)
            foreground = targets.foreground.sum(axis=1, dtype=jnp.float32)
            if not objective.counts_need_predictions(config):
                weights = jax.vmap(
                    lambda targets: objective.box_weights(None, targets, anchors, config)
                )(targets)
                box_weight = None if weights is None else weights.sum(axis=1)
                return targets, (foreground, jnp.zeros_like(foreground), box_weight)
            # OHEM's selection and qfl's weights depend on the logits: one more forward pass
            images = normalize_images(batch.images, batch.sizes, config.data)
            sums, _ = image_losses_of(
                model, config, state.params, state.batch_stats, images, targets, anchors
            )
            return targets, (foreground, sums.selected, sums.box_weight)

        numbers = jnp.arange(count)
        # in turn: matching needs far more memory than the targets that it leaves
        targets, of_images = jax.lax.map(first_pass, numbers)
        counts = objective.batch_counts(*jax.tree.map(jnp.ravel, of_images), over_devices)

        def add(total: BatchGradient, micro):
            number, targets = micro
            own = share(
                state.replace(batch_stats=total.batch_stats), micro_batch(number), targets, counts
            )
            gradient, parts = jax.tree.map(
                jnp.add, (total.gradient, total.parts), (own.gradient, own.parts)
            )
            return own.replace(gradient=gradient, parts=parts), None

        terms = objective.extra_terms(config)
        nothing = BatchGradient(
            gradient=jax.tree.map(jnp.zeros_like, state.params),
            parts=LossParts(
                *[jnp.zeros(())] * 4,
                by_level=jnp.zeros((3 + len(terms), len(LEVELS))),
                extra={term.name: jnp.zeros(()) for term in terms},
            ),
            loss_normalizer=state.loss_normalizer,
            batch_stats=state.batch_stats,
        )
        return jax.lax.scan(add, nothing, (numbers, targets))[0]

    def gradient(state: TrainState, batch: Batch) -> BatchGradient:
        own = share(state, batch) if count == 1 else accumulated(state, batch)
        return own.replace(gradient=over_devices(own.gradient), parts=over_devices(own.parts))

    return gradient
