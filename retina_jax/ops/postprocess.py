"""Selects a fixed number of candidate boxes from scores and box outputs, on the device."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from retina_jax.ops.boxes import clip
from retina_jax.ops.distribution import decode_outputs
from retina_jax.types import Array, Candidates, Predictions


def class_scores(logits: Float[Array, "*n c"], softmax: bool) -> Float[Array, "*n k"]:
    """Probability of each class, float32: sigmoid, or softmax without the background logit."""
    logits = logits.astype(jnp.float32)
    return jax.nn.softmax(logits, axis=-1)[..., :-1] if softmax else jax.nn.sigmoid(logits)


def scores_of(predictions: Predictions, softmax: bool) -> list[Float[Array, "_ c"]]:
    """The score of each anchor and class of one image, by level; float32.

    The probability of the class (`class_scores`) or, where centerness is predicted, the geometric
    mean of that and the centerness, as in the authors' code of ATSS: ordered like their product,
    but on the scale of a probability.
    """
    scores = [class_scores(x, softmax) for x in predictions.logits]
    if predictions.centerness is None:
        return scores
    return [
        jnp.sqrt(of_classes * jax.nn.sigmoid(central)[..., None])
        for of_classes, central in zip(scores, predictions.centerness, strict=True)
    ]


def select_candidates(
    scores: Sequence[Float[Array, "_ c"]],
    box_outputs: Sequence[Float[Array, "_ k v"]],
    anchors: Sequence[Float[Array, "_ 4"]],
    size: Int[Array, "2"],
    score_threshold: float = 0.05,
    top_k: int = 1000,
    clip_to_image: bool = True,
    strides: Float[Array, "levels 2"] | None = None,
    **coder: Any,
) -> Candidates:
    """The ``top_k`` best (anchor, class) pairs of each level of one image, decoded.

    ``scores`` ``[anchors, classes]``, ``box_outputs`` ``[anchors, k, v]`` (k is 1 or the number of
    classes, v the values of a box) and ``anchors`` (pixels) are lists over levels. ``size`` is the
    (height, width) of the image, to which boxes are clipped with ``clip_to_image`` (Detectron2
    clips after NMS). ``strides`` of the levels and ``coder`` are the other arguments of
    `decode_outputs`, which decodes the chosen boxes only. Returns
    ``Σ min(top_k, anchors · classes)`` candidates; those at or below the threshold have score 0.
    Source: section 4.1, "Inference".
    """
    levels = []
    of_levels = [None] * len(scores) if strides is None else strides
    for level_scores, level_outputs, level_anchors, stride in zip(
        scores, box_outputs, anchors, of_levels, strict=True
    ):
        classes = level_scores.shape[-1]
        best, place = jax.lax.top_k(level_scores.reshape(-1), min(top_k, level_scores.size))
        anchor, label = place // classes, place % classes
        own = level_outputs[anchor, jnp.minimum(label, level_outputs.shape[1] - 1)]
        boxes = decode_outputs(own, jnp.asarray(level_anchors)[anchor], stride, **coder)
        if clip_to_image:
            boxes = clip(boxes, size[0], size[1])
        levels.append(
            Candidates(
                boxes=boxes,
                scores=jnp.where(best > score_threshold, best, 0.0),
                labels=label.astype(jnp.int32),
            )
        )
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *levels)
