"""The classification and box losses of a batch, from logits, deltas and targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float

from retina_jax.config.fields import BOX_LOSSES, CLASSIFICATION_LOSSES
from retina_jax.ops import box_losses, losses
from retina_jax.ops.boxes import decode
from retina_jax.types import Array, Targets


@flax.struct.dataclass
class ImageLosses:
    """Sums over the anchors of each image."""

    classification: Float[Array, "*n"]
    box: Float[Array, "*n"]
    foreground: Float[Array, "*n"]
    """Number of foreground anchors."""
    selected: Float[Array, "*n"]
    """Number of anchors that OHEM selected; 0 without OHEM."""
    by_level: Float[Array, "*n 3 levels"]
    """``classification``, ``box`` and ``foreground`` of each pyramid level; for the log alone."""


def classification_function(loss: Any) -> Callable[[Array, Array], Array]:
    """``(logits, labels) -> losses`` for the config's ``loss`` group."""
    name, fields = CLASSIFICATION_LOSSES[loss.classification]
    return partial(getattr(losses, name), **{field: getattr(loss, field) for field in fields})


def classification_loss(
    logits: Float[Array, "a c"], targets: Targets, anchors: Float[Array, "a 4"], config: Any
) -> tuple[jax.Array, jax.Array]:
    """Loss of each anchor of one image ``[a]``, 0 if not used, and the count that OHEM selected."""
    loss = classification_function(config)(logits, targets.labels)
    if config.classification != "ohem":
        return jnp.where(targets.ignore, 0.0, loss), jnp.zeros(())
    selected = losses.ohem_selection(
        loss,
        anchors,
        targets.foreground,
        targets.ignore,
        config.ohem_examples,
        config.ohem_nms_iou,
        config.ohem_negatives,
    )
    return jnp.where(selected, loss, 0.0), selected.sum(dtype=jnp.float32)


def box_loss(
    deltas: Float[Array, "a k 4"],
    targets: Targets,
    anchors: Float[Array, "a 4"],
    config: ml_collections.ConfigDict,
) -> jax.Array:
    """Box loss of each anchor of one image ``[a]``; 0 unless it is foreground.

    ``k`` is 1 or the number of classes. With one box per class, only the box of the anchor's class
    has a loss.
    """
    boxes_of_anchor = deltas.shape[1]
    own = jnp.clip(targets.labels, 0, boxes_of_anchor - 1)
    deltas = jnp.take_along_axis(deltas, own[:, None, None], axis=1)[:, 0]
    name, compared = BOX_LOSSES[config.loss.box]
    function = getattr(box_losses, name)
    if compared == "boxes":
        boxes = decode(deltas, anchors, config.coder.weights, config.coder.clamp)
        loss = function(boxes, targets.boxes)
    else:
        beta = config.loss.smooth_l1_beta if config.loss.box == "smooth_l1" else 0.0
        loss = function(deltas, targets.deltas, beta).sum(-1)
    return jnp.where(targets.foreground, loss, 0.0)


def image_losses(
    logits: Float[Array, "n a c"],
    deltas: Float[Array, "n a k 4"],
    targets: Targets,
    anchors: Float[Array, "a 4"],
    config: ml_collections.ConfigDict,
    level_sizes: Sequence[int] | None = None,
) -> ImageLosses:
    """Both losses of each image of a batch, not normalised.

    ``level_sizes``: number of anchors of each pyramid level; None: all are of one.
    """
    ends = np.cumsum(level_sizes or [len(anchors)])

    def by_level(*of_anchors):
        # the losses are summed by themselves, so that their bits do not depend on what is logged
        rows = jax.lax.stop_gradient(jnp.stack(of_anchors))
        return jnp.stack([level.sum(axis=1) for level in jnp.split(rows, ends[:-1], 1)], axis=1)

    def one_image(logits, deltas, targets):
        classification, selected = classification_loss(logits, targets, anchors, config.loss)
        box = box_loss(deltas, targets, anchors, config)
        foreground = targets.foreground.astype(jnp.float32)
        return ImageLosses(
            classification=classification.sum(),
            box=box.sum(),
            foreground=targets.foreground.sum(dtype=jnp.float32),
            selected=selected,
            by_level=by_level(classification, box, foreground),
        )

    return jax.vmap(one_image)(logits, deltas, targets)


@flax.struct.dataclass
class BatchCounts:
    """What the losses of the global batch are divided by; constants of differentiation."""

    foreground: Float[Array, ""]
    """Number of foreground anchors."""
    selected: Float[Array, ""]
    """Number of anchors that OHEM selected; 0 without OHEM."""
    images: Float[Array, ""]


def batch_counts(
    foreground: Float[Array, "*n"],
    selected: Float[Array, "*n"],
    over_devices: Callable[[Any], Any],
) -> BatchCounts:
    """The counts of the global batch, from those of each image of this device's share."""
    counts = jax.lax.stop_gradient((foreground, selected, jnp.ones_like(foreground)))
    return BatchCounts(*over_devices(jax.tree.map(jnp.sum, counts)))


def _divisors(
    sums: ImageLosses, counts: BatchCounts, ema: Float[Array, ""], config: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the classification and the box losses (for each image, or for all), and the next ``ema``.

    See `normalize`.
    """
    foreground = counts.foreground
    if config.normalizer == "per_image":
        divisor = jnp.maximum(sums.foreground, 1) * counts.images
    elif config.normalizer == "foreground_plus_1":
        divisor = foreground + 1
    elif config.normalizer == "ema":
        momentum = config.ema_momentum
        divisor = ema = momentum * ema + (1 - momentum) * jnp.maximum(foreground, 1)
    else:
        divisor = jnp.maximum(foreground, 1)
    of_classes = jnp.maximum(counts.selected, 1) if config.classification == "ohem" else divisor
    return of_classes, divisor, ema


def normalize(
    sums: ImageLosses, counts: BatchCounts, ema: Float[Array, ""], config: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What some images contribute to the classification and box losses, and the next ``ema``.

    Summed over micro-batches and devices, the shares give the loss of the global batch: ``counts``
    are those of the whole batch. ``config`` is the ``loss`` group; ``normalizer`` selects the
    divisor:

    - "foreground": number of foreground anchors in the batch, at least 1 (section 4.1);
    - "foreground_plus_1": that number plus 1 (TF Model Garden);
    - "per_image": foreground anchors of each image, at least 1; then the mean over images
      (torchvision);
    - "ema": moving average of the foreground anchors per batch (Detectron2), kept in the state.

    OHEM's classification loss is the mean over the selected anchors, as in Fast R-CNN.
    """
    of_classes, divisor, ema = _divisors(sums, counts, ema, config)
    return (sums.classification / of_classes).sum(), (sums.box / divisor).sum(), ema


def normalize_levels(
    sums: ImageLosses, counts: BatchCounts, ema: Float[Array, ""], config: Any
) -> Float[Array, "3 levels"]:
    """The shares of each pyramid level in both losses of `normalize`, and its foreground anchors.

    Summed over levels, they are the losses up to rounding.
    """
    of_classes, divisor, _ = _divisors(sums, counts, ema, config)
    ones = jnp.ones_like(sums.foreground)
    divisors = jnp.stack([of_classes * ones, divisor * ones, ones], axis=-1)
    return (sums.by_level / divisors[..., None]).reshape(-1, *sums.by_level.shape[-2:]).sum(0)
