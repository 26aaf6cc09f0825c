"""The losses of a batch, from predictions and targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float

from retina_jax.config.fields import BOX_LOSSES, CLASSIFICATION_LOSSES
from retina_jax.config.values import coder_arguments
from retina_jax.ops import box_losses, losses
from retina_jax.ops.boxes import paired_iou
from retina_jax.ops.centerness import centerness, centerness_loss
from retina_jax.ops.distribution import decode_outputs, distribution_focal_loss, encode_distances
from retina_jax.types import Array, Predictions, Targets


@flax.struct.dataclass
class ImageLosses:
    """Sums over the anchors of each image."""

    classification: Float[Array, "*n"]
    box: Float[Array, "*n"]
    foreground: Float[Array, "*n"]
    """Number of foreground anchors."""
    selected: Float[Array, "*n"]
    """Number of anchors that OHEM selected; 0 without OHEM."""
    by_level: Float[Array, "*n rows levels"]
    """``classification``, ``box``, ``foreground`` and the values of ``extra`` of each pyramid
    level; for the log alone."""
    box_weight: Float[Array, "*n"] | None = None
    """Sum of `box_weights`; None without weights."""
    extra: dict[str, Float[Array, "*n"]] = dataclasses.field(default_factory=dict)
    """The losses of `extra_terms`, by name."""


@dataclasses.dataclass(frozen=True)
class Term:
    """A loss in addition to those of classes and boxes."""

    name: str
    """In the log, ``loss_`` and the name."""
    weight: float
    """In the total loss."""
    weighted: bool
    """Multiplied by `box_weights` and divided by their sum, as the box loss is; else divided by the
    number of foreground anchors, as ``loss.normalizer`` counts it."""
    loss: Callable[[Predictions, Targets, Array, Array | None, Any], jax.Array]
    """``(predictions, targets, anchors, strides, config) -> [a]`` of one image; 0 unless the anchor
    is foreground. ``strides`` are those of the anchors ``[a, 2]``, or None (`image_losses`)."""


def extra_terms(config: ml_collections.ConfigDict) -> tuple[Term, ...]:
    """The losses of ``config`` in addition to those of classes and boxes, sorted by name."""
    terms = []
    if config.loss.box == "dfl":
        terms.append(Term("dfl", config.loss.dfl_weight, weighted=True, loss=dfl_loss))
    if config.model.centerness:
        terms.append(Term("centerness", 1.0, weighted=False, loss=_centerness_loss))
    return tuple(sorted(terms, key=lambda term: term.name))


def _centerness_loss(
    predictions: Predictions,
    targets: Targets,
    anchors: Float[Array, "a 4"],
    strides: Float[Array, "a 2"] | None,
    config: Any,
) -> jax.Array:
    del strides, config
    loss = centerness_loss(predictions.centerness, centerness(targets.boxes, anchors))
    return jnp.where(targets.foreground, loss, 0.0)


def box_weights(
    predictions: Predictions | None,
    targets: Targets,
    anchors: Float[Array, "a 4"],
    config: ml_collections.ConfigDict,
) -> jax.Array | None:
    """Weight of each anchor's box loss in one image ``[a]``; constants of differentiation.

    0 unless the anchor is foreground. None: all foreground anchors weigh the same, and the box loss
    is divided as ``loss.normalizer`` says, not by the sum of weights. ``predictions`` are used only
    if `counts_need_predictions`.

    With ``model.centerness``, the weight is the target of the centerness, as in FCOS and ATSS; with
    qfl, it is the highest class score of the anchor, as in the authors' code. A config with both is
    not valid.
    """
    if config.model.centerness:
        return jnp.where(targets.foreground, centerness(targets.boxes, anchors), 0.0)
    if config.loss.classification == "qfl":
        best = jax.lax.stop_gradient(predictions.logits).astype(jnp.float32).max(axis=-1)
        return jnp.where(targets.foreground, jax.nn.sigmoid(best), 0.0)
    return None


def counts_need_predictions(config: ml_collections.ConfigDict) -> bool:
    """Whether `BatchCounts` depends on the predictions, not on targets alone."""
    return config.loss.classification in ("ohem", "qfl")


def classification_function(loss: Any) -> Callable[..., Array]:
    """``(logits, labels) -> losses`` for the config's ``loss`` group.

    With qfl, ``(logits, labels, quality)``.
    """
    name, fields = CLASSIFICATION_LOSSES[loss.classification]
    return partial(getattr(losses, name), **{field: getattr(loss, field) for field in fields})


def classification_loss(
    logits: Float[Array, "a c"],
    targets: Targets,
    anchors: Float[Array, "a 4"],
    config: Any,
    quality: Float[Array, "a"] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Loss of each anchor of one image ``[a]``, 0 if not used, and the count that OHEM selected.

    ``config`` is the ``loss`` group; ``quality`` is the IoU of each anchor's predicted box with its
    matched box, for qfl alone.
    """
    of_boxes = () if quality is None else (quality,)
    loss = classification_function(config)(logits, targets.labels, *of_boxes)
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


def own_outputs(box_outputs: Float[Array, "a k v"], targets: Targets) -> jax.Array:
    """The outputs of each anchor's box ``[a, v]``.

    With one box per class (k is then the number of classes), those of the box of its own class.
    """
    boxes_of_anchor = box_outputs.shape[1]
    own = jnp.clip(targets.labels, 0, boxes_of_anchor - 1)
    return jnp.take_along_axis(box_outputs, own[:, None, None], axis=1)[:, 0]


def box_loss(
    outputs: Float[Array, "a v"],
    boxes: Callable[[], Float[Array, "a 4"]],
    targets: Targets,
    config: ml_collections.ConfigDict,
) -> jax.Array:
    """Box loss of each anchor of one image ``[a]``; 0 unless it is foreground.

    ``outputs`` are `own_outputs`, and ``boxes`` decodes them if the loss is one of boxes.
    """
    name, compared = BOX_LOSSES[config.loss.box]
    function = getattr(box_losses, name)
    if compared == "boxes":
        loss = function(boxes(), targets.boxes)
    else:
        beta = config.loss.smooth_l1_beta if config.loss.box == "smooth_l1" else 0.0
        loss = function(outputs, targets.deltas, beta).sum(-1)
    return jnp.where(targets.foreground, loss, 0.0)


def dfl_loss(
    predictions: Predictions,
    targets: Targets,
    anchors: Float[Array, "a 4"],
    strides: Float[Array, "a 2"],
    config: ml_collections.ConfigDict,
) -> jax.Array:
    """Distribution focal loss of each anchor ``[a]``, the mean of the four sides.

    0 unless the anchor is foreground. Distances of sides that the values cannot express, such as
    those to the sides of a box that does not enclose the anchor's centre, count as the nearest one.
    """
    outputs = own_outputs(predictions.box_outputs, targets)
    logits = outputs.reshape(*outputs.shape[:-1], 4, config.loss.dfl_bins + 1)
    distances = encode_distances(targets.boxes, anchors, strides)
    loss = distribution_focal_loss(logits, distances).mean(-1)
    return jnp.where(targets.foreground, loss, 0.0)


def image_losses(
    predictions: Predictions,
    targets: Targets,
    anchors: Float[Array, "a 4"],
    config: ml_collections.ConfigDict,
    strides: Float[Array, "levels 2"] | None = None,
) -> ImageLosses:
    """The losses of each image of a batch, not normalised.

    ``predictions`` are lists over levels; targets and anchors are those of all levels.
    ``strides`` are those of the levels, (horizontal, vertical) in pixels; only needed if the box
    head predicts distributions.
    """
    sizes = [level.shape[1] for level in predictions.logits]
    ends = np.cumsum(sizes)
    terms = extra_terms(config)
    if strides is not None:
        strides = np.repeat(strides, sizes, axis=0)

    def by_level(*of_anchors):
        # the losses are summed by themselves, so that their bits do not depend on what is logged
        rows = jax.lax.stop_gradient(jnp.stack(of_anchors))
        return jnp.stack([level.sum(axis=1) for level in jnp.split(rows, ends[:-1], 1)], axis=1)

    def one_image(predictions, targets):
        # functions of nothing: decoded once, and only for a loss that compares boxes
        outputs = cache(lambda: own_outputs(predictions.box_outputs, targets))
        boxes = cache(
            lambda: decode_outputs(outputs(), anchors, strides, **coder_arguments(config))
        )
        quality = None
        if config.loss.classification == "qfl":
            quality = jax.lax.stop_gradient(paired_iou(boxes(), targets.boxes))
        classification, selected = classification_loss(
            predictions.logits, targets, anchors, config.loss, quality
        )
        box = box_loss(outputs(), boxes, targets, config)
        weights = box_weights(predictions, targets, anchors, config)
        extra = {
            term.name: term.loss(predictions, targets, anchors, strides, config) for term in terms
        }
        if weights is not None:
            box *= weights
            extra |= {t.name: extra[t.name] * weights for t in terms if t.weighted}
        foreground = targets.foreground.astype(jnp.float32)
        return ImageLosses(
            classification=classification.sum(),
            box=box.sum(),
            foreground=targets.foreground.sum(dtype=jnp.float32),
            selected=selected,
            by_level=by_level(classification, box, foreground, *extra.values()),
            box_weight=None if weights is None else weights.sum(),
            extra=jax.tree.map(jnp.sum, extra),
        )

    return jax.vmap(one_image)(predictions.joined(), targets)


@flax.struct.dataclass
class BatchCounts:
    """What the losses of the global batch are divided by; constants of differentiation."""

    foreground: Float[Array, ""]
    """Number of foreground anchors."""
    selected: Float[Array, ""]
    """Number of anchors that OHEM selected; 0 without OHEM."""
    images: Float[Array, ""]
    box_weight: Float[Array, ""] | None
    """Sum of the weights of boxes; None without weights."""


def batch_counts(
    foreground: Float[Array, "*n"],
    selected: Float[Array, "*n"],
    box_weight: Float[Array, "*n"] | None,
    over_devices: Callable[[Any], Any],
) -> BatchCounts:
    """The counts of the global batch, from those of each image of this device's share."""
    counts = jax.lax.stop_gradient((foreground, selected, jnp.ones_like(foreground), box_weight))
    return BatchCounts(*over_devices(jax.tree.map(jnp.sum, counts)))


@dataclasses.dataclass(frozen=True)
class _Divisors:
    """What the losses are divided by: for each image, or for all; see `normalize`."""

    classification: jax.Array
    foreground: jax.Array
    box: jax.Array

    def of(self, term: Term) -> jax.Array:
        return self.box if term.weighted else self.foreground


def _divisors(
    sums: ImageLosses, counts: BatchCounts, ema: Float[Array, ""], config: Any
) -> tuple[_Divisors, jax.Array]:
    """The divisors, and the next ``ema``; ``config`` is the ``loss`` group."""
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
    weight = counts.box_weight
    of_boxes = divisor if weight is None else jnp.maximum(weight, 1)
    return _Divisors(of_classes, divisor, of_boxes), ema


@flax.struct.dataclass
class Losses:
    """The losses of the global batch, or the part of them that some of its images contribute."""

    classification: Float[Array, "*n"]
    box: Float[Array, "*n"]
    extra: dict[str, Float[Array, "*n"]]
    """Of `extra_terms`, by name, without their weights in the total."""

    def total(self, config: ml_collections.ConfigDict) -> jax.Array:
        loss = self.classification + config.loss.box_weight * self.box
        for term in extra_terms(config):
            loss += term.weight * self.extra[term.name]
        return loss


def normalize(
    sums: ImageLosses,
    counts: BatchCounts,
    ema: Float[Array, ""],
    config: ml_collections.ConfigDict,
) -> tuple[Losses, jax.Array]:
    """What some images contribute to the losses, and the next ``ema``.

    Summed over micro-batches and devices, the shares give the losses of the global batch:
    ``counts`` are those of the whole batch. ``loss.normalizer`` selects the divisor:

    - "foreground": number of foreground anchors in the batch, at least 1 (section 4.1);
    - "foreground_plus_1": that number plus 1 (TF Model Garden);
    - "per_image": foreground anchors of each image, at least 1; then the mean over images
      (torchvision);
    - "ema": moving average of the foreground anchors per batch (Detectron2), kept in the state.

    OHEM's classification loss is the mean over the selected anchors, as in Fast R-CNN. Where boxes
    have weights, their losses are divided by the sum of the weights in the batch, at least 1,
    whatever the normalizer.
    """
    divisors, ema = _divisors(sums, counts, ema, config.loss)
    losses = Losses(
        (sums.classification / divisors.classification).sum(),
        (sums.box / divisors.box).sum(),
        {
            term.name: (sums.extra[term.name] / divisors.of(term)).sum()
            for term in extra_terms(config)
        },
    )
    return losses, ema


def normalize_levels(
    sums: ImageLosses,
    counts: BatchCounts,
    ema: Float[Array, ""],
    config: ml_collections.ConfigDict,
) -> Float[Array, "rows levels"]:
    """The shares of each pyramid level in the losses of `normalize`, and its foreground anchors.

    The rows are those of `ImageLosses.by_level`. Summed over levels, they are the losses up to
    rounding.
    """
    divisors, _ = _divisors(sums, counts, ema, config.loss)
    ones = jnp.ones_like(sums.foreground)
    of_rows = [divisors.classification * ones, divisors.box * ones, ones]
    of_rows += [divisors.of(term) * ones for term in extra_terms(config)]
    by_row = jnp.stack(of_rows, axis=-1)
    return (sums.by_level / by_row[..., None]).reshape(-1, *sums.by_level.shape[-2:]).sum(0)
