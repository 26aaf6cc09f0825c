"""What one step computes, by module and image, to find where a loss becomes non-finite."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float, Int

from retina_jax.config.values import target_arguments
from retina_jax.models.retinanet import RetinaNet, anchors_for, normalize_images
from retina_jax.ops.anchors import LEVELS, pyramid_grids
from retina_jax.ops.targets import assign_targets
from retina_jax.training import objective
from retina_jax.training.gradient import LossParts, image_losses_of, make_gradient
from retina_jax.types import Array, Batch, TrainState


@flax.struct.dataclass
class Spread:
    """The values of an array, for each image of a batch."""

    not_finite: Int[Array, "*n"]
    """Number of NaN and infinite values."""
    largest: Float[Array, "*n"]
    """Largest magnitude of the others; 0 without any."""


@flax.struct.dataclass
class Examination:
    """One step, of the global batch; n images in the order of the batch."""

    parts: LossParts
    classification: Float[Array, "n"]
    """The contribution of each image to the classification loss of the batch."""
    box: Float[Array, "n"]
    """Its contribution to the box loss, without ``loss.box_weight``."""
    extra: dict[str, Float[Array, "n"]]
    """Its contribution to the losses of `objective.extra_terms`, by name, without their weights."""
    foreground: Float[Array, "n"]
    pixels: Spread
    """Of the normalised images."""
    outputs: list[Spread]
    """Of the output of each call of a module, in the order in which the calls end."""
    gradient: Any
    """With respect to ``state.params``."""


def make_examination(
    model: RetinaNet, config: ml_collections.ConfigDict
) -> tuple[Callable[[TrainState, Batch], tuple[TrainState, Examination]], list[str]]:
    """A step that changes nothing, and the names of the calls in `Examination.outputs`.

    The step takes one device's share of a batch, as a training step does (`make_train_step`), and
    returns the state as it is; the names are there when it has been traced. The forward pass takes
    the same micro-batches as training, and keeps no activations.
    """
    gradient_of = make_gradient(model, config)
    target_options = target_arguments(config)
    axis, count = model.axis_name, config.train.accumulate
    whole_blocks = config.copy_and_resolve_references().unlock()
    whole_blocks.model.remat = False  # the outputs could not leave a block that is recomputed
    network = model.clone(config=ml_collections.FrozenConfigDict(whole_blocks))
    names: list[str] = []

    def over_devices(tree):
        return jax.lax.psum(tree, axis) if axis else tree

    def forward(batch_stats, params, batch: Batch, anchors):
        """Of one micro-batch: the next statistics, the sums of the losses, and all outputs."""
        names.clear()
        outputs = []

        def listen(call, arguments, options, context):
            result = call(*arguments, **options)
            if context.method_name == "__call__":
                names.append("/".join(context.module.path) or "logits and boxes")
                outputs.append(spread(result))
            return result

        images = normalize_images(batch.images, batch.sizes, config.data)
        grids = pyramid_grids(batch.images.shape[-3:-1])
        targets = jax.vmap(lambda truth: assign_targets(anchors, truth, grids, **target_options))(
            batch.ground_truth
        )
        with nn.intercept_methods(listen):
            sums, updated = image_losses_of(
                network, config, params, batch_stats, images, targets, anchors
            )
        return updated, (sums, spread(images), outputs)

    def examine(state: TrainState, batch: Batch) -> tuple[TrainState, Examination]:
        anchors = np.concatenate(anchors_for(config, batch.images.shape[-3:-1]))
        found = gradient_of(state, batch)
        micro_batches = jax.tree.map(
            lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch
        )
        _, by_image = jax.lax.scan(
            lambda stats, micro: forward(stats, state.params, micro, anchors),
            state.batch_stats,
            micro_batches,
        )

        def of_all(x):
            x = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
            return jax.lax.all_gather(x, axis, tiled=True) if axis else x

        own = by_image[0]
        counts = objective.batch_counts(
            *jax.tree.map(jnp.ravel, (own.foreground, own.selected, own.box_weight)), over_devices
        )
        sums, pixels, outputs = jax.tree.map(of_all, by_image)
        losses, _ = jax.vmap(
            lambda image: objective.normalize(image, counts, state.loss_normalizer, config)
        )(sums)
        return state, Examination(
            parts=found.parts,
            classification=losses.classification,
            box=losses.box,
            extra=losses.extra,
            foreground=sums.foreground,
            pixels=pixels,
            outputs=outputs,
            gradient=found.gradient,
        )

    return examine, names


def spread(tree: Any) -> Spread:
    """`Spread` of arrays ``[n, …]`` together."""
    leaves = [x.reshape(len(x), -1) for x in jax.tree.leaves(tree)]
    finite = [jnp.isfinite(x) for x in leaves]
    return Spread(
        not_finite=sum((~f).sum(axis=1, dtype=jnp.int32) for f in finite),
        largest=jnp.stack(
            [
                jnp.where(f, jnp.abs(x), 0).max(axis=1).astype(jnp.float32)
                for f, x in zip(finite, leaves, strict=True)
            ]
        ).max(axis=0),
    )


def call_names(names: list[str]) -> list[str]:
    """The names of calls, with the pyramid level where a module is called for each (the heads)."""
    total, seen, shown = collections.Counter(names), collections.Counter(), []
    for name in names:
        level = LEVELS[seen[name]] if total[name] == len(LEVELS) else None
        seen[name] += 1
        shown.append(name if level is None else f"{name} at P{level}")
    return shown
