"""Classification losses as pure functions: the loss of each anchor, summed over its classes.

All take logits ``[*n, c]`` of any float dtype and labels ``[*n]`` (the class of a foreground
anchor, -1 for background), and return ``[*n]`` in float32. Values and gradients are finite for
logits up to ±1e30. `retina_jax.training.objective` handles sums, ignored anchors and normalisers.

With y = ±1, ``x_t = y · x`` and ``p_t = σ(x_t)`` as in section 3 of arXiv:1708.02002.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from retina_jax.ops.boxes import pairwise_iou
from retina_jax.types import Array


def _recomputed(loss: Callable) -> Callable:
    """Recomputes ``loss`` in the backward pass, so that only its arguments are stored.

    Autodiff would store several arrays of the size of the logits, the largest array, to save a few
    cheap operations.
    """
    return jax.checkpoint(loss)


def _is_label(logits: Array, labels: Array) -> Array:
    """``[*n, c]``: true for the class of a foreground anchor."""
    return labels[..., None] == jnp.arange(logits.shape[-1])


def sigmoid_cross_entropy(
    logits: Float[Array, "*n c"], labels: Int[Array, "*n"]
) -> Float[Array, "*n"]:
    """``CE = -log p_t`` (equation 1), summed over classes."""

    @_recomputed
    def loss(logits):
        logits = logits.astype(jnp.float32)
        signed = jnp.where(_is_label(logits, labels), logits, -logits)
        return -jax.nn.log_sigmoid(signed).sum(-1)

    return loss(logits)


def balanced_cross_entropy(
    logits: Float[Array, "*n c"], labels: Int[Array, "*n"], alpha: float = 0.75
) -> Float[Array, "*n"]:
    """``-α_t log p_t`` (equation 3): the focal loss with γ = 0."""
    return sigmoid_focal_loss(logits, labels, alpha, 0.0)


def sigmoid_focal_loss(
    logits: Float[Array, "*n c"],
    labels: Int[Array, "*n"],
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*n"]:
    """``FL = -α_t (1 - p_t)^γ log p_t`` (equation 5), summed over classes.

    Args:
      logits: one per class; the classes of an anchor are independent.
      labels: class, or -1.
      alpha: weight of the logit of the anchor's class; all others have ``1 - alpha``.
      gamma: focusing exponent, 0 or more.

    The power is computed in log space. Only the logits are stored for the backward pass.
    """

    @_recomputed
    def loss(logits):
        logits = logits.astype(jnp.float32)
        is_label = _is_label(logits, labels)
        signed = jnp.where(is_label, logits, -logits)
        alpha_t = jnp.where(is_label, alpha, 1 - alpha)
        focusing = jnp.exp(gamma * jax.nn.log_sigmoid(-signed)) if gamma else 1.0
        return -(alpha_t * focusing * jax.nn.log_sigmoid(signed)).sum(-1)

    return loss(logits)


def focal_star_loss(
    logits: Float[Array, "*n c"],
    labels: Int[Array, "*n"],
    alpha: float = 0.25,
    gamma: float = 2.0,
    beta: float = 1.0,
) -> Float[Array, "*n"]:
    """``FL* = -α_t log σ(γ x_t + β) / γ`` (appendix A), γ above 0, summed over classes.

    The appendix omits α but states that all other settings are unchanged, so α is kept.
    ``alpha=0.5`` gives half of the printed formula.
    """

    @_recomputed
    def loss(logits):
        logits = logits.astype(jnp.float32)
        is_label = _is_label(logits, labels)
        signed = jnp.where(is_label, logits, -logits)
        alpha_t = jnp.where(is_label, alpha, 1 - alpha)
        return -(alpha_t * jax.nn.log_sigmoid(gamma * signed + beta)).sum(-1) / gamma

    return loss(logits)


def softmax_focal_loss(
    logits: Float[Array, "*n c"],
    labels: Int[Array, "*n"],
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*n"]:
    """``-α_t (1 - p_t)^γ log p_t``, where ``p_t`` is the softmax of the anchor's class.

    The last of the ``c`` logits is background. Foreground anchors have weight ``alpha``, background
    has ``1 - alpha``. γ = 0 with α = 0.5 is half the softmax cross entropy.
    """

    @_recomputed
    def loss(logits):
        logits = logits.astype(jnp.float32)
        target = jnp.where(labels >= 0, labels, logits.shape[-1] - 1)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        log_p_t = jnp.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]
        # log(1 - p_t) as logsumexp of the other classes: 1 - p_t would cancel to 0 near p_t = 1
        own = jax.nn.one_hot(target, logits.shape[-1], dtype=bool)
        log_not_p_t = jax.nn.logsumexp(jnp.where(own, -jnp.inf, log_p), axis=-1)
        alpha_t = jnp.where(labels >= 0, alpha, 1 - alpha)
        focusing = jnp.exp(gamma * log_not_p_t) if gamma else 1.0
        return -alpha_t * focusing * log_p_t

    return loss(logits)


def quality_focal_loss(
    logits: Float[Array, "*n c"],
    labels: Int[Array, "*n"],
    quality: Float[Array, "*n"],
    gamma: float = 2.0,
) -> Float[Array, "*n"]:
    """``QFL = |y - σ|^β ((1 - y) · -log(1 - σ) + y · -log σ)``, summed over classes.

    Args:
      logits: one per class; the classes of an anchor are independent.
      labels: class, or -1.
      quality: y of the logit of the anchor's class, 0 to 1: the IoU of its predicted box with the
        matched one. y is 0 for all other logits. Held constant: it has no gradient.
      gamma: β, the focusing exponent, 0 or more.

    Source: arXiv:2006.04388, equation 2. There is no α: for y of 0 and 1, this is the focal loss
    without it. The minimum is at ``σ = y``. ``y - σ`` is computed without cancellation at both
    ends. Only the logits are stored for the backward pass, and one y for each anchor.
    """
    quality = jax.lax.stop_gradient(quality)

    @_recomputed
    def loss(logits):
        logits = logits.astype(jnp.float32)
        target = jnp.where(_is_label(logits, labels), quality[..., None], 0.0)
        entropy = (1 - target) * jax.nn.softplus(logits) + target * jax.nn.softplus(-logits)
        if not gamma:
            return entropy.sum(-1)
        positive = logits > 0
        tail = jax.nn.sigmoid(jnp.where(positive, -logits, logits))
        distance = jnp.abs(jnp.where(positive, target - 1 + tail, target - tail))
        # without the inner where, the power's derivative at 0 is infinite for exponents below 1
        apart = distance > 0
        focusing = jnp.where(apart, jnp.where(apart, distance, 1.0) ** gamma, 0.0)
        return (focusing * entropy).sum(-1)

    return loss(logits)


def hard_examples(
    losses: Float[Array, "a"],
    anchors: Float[Array, "a 4"],
    allowed: Bool[Array, "a"],
    count: int,
    nms_iou: float,
) -> Bool[Array, "a"]:
    """The ``count`` anchors with the highest loss after NMS, one image (OHEM, arXiv:1604.03540).

    Greedily selects the ``allowed`` anchor with the highest loss, and drops those that overlap it
    with an IoU above ``nms_iou``. Selects fewer if no more remain. ``nms_iou=1`` disables NMS.
    """
    anchors = jnp.asarray(anchors)
    remaining = jnp.where(allowed, jax.lax.stop_gradient(losses), -jnp.inf)
    count = min(count, remaining.shape[0])
    if nms_iou >= 1:
        values, places = jax.lax.top_k(remaining, count)
        return jnp.zeros(remaining.shape, bool).at[places].set(values > -jnp.inf)

    def choose(_, carry):
        remaining, chosen = carry
        best = jnp.argmax(remaining)
        there = remaining[best] > -jnp.inf
        overlap = pairwise_iou(anchors, anchors[best][None])[:, 0] > nms_iou
        remaining = jnp.where(overlap & there, -jnp.inf, remaining).at[best].set(-jnp.inf)
        return remaining, chosen.at[best].set(chosen[best] | there)

    start = (remaining, jnp.zeros(remaining.shape, bool))
    return jax.lax.fori_loop(0, count, choose, start)[1]


def ohem_selection(
    losses: Float[Array, "a"],
    anchors: Float[Array, "a 4"],
    foreground: Bool[Array, "a"],
    ignore: Bool[Array, "a"],
    count: int,
    nms_iou: float,
    negatives_per_positive: float = 0.0,
) -> Bool[Array, "a"]:
    """The ``count`` anchors of one image that OHEM trains on, as a mask (section 5.3).

    With ``negatives_per_positive`` (3 in SSD and the paper's "OHEM 1:3"), selects at most
    ``count / (1 + negatives_per_positive)`` foreground anchors and, for each of them,
    ``negatives_per_positive`` background anchors, the hardest of each. An image without foreground
    gets the background anchors of one.
    """
    if not negatives_per_positive:
        return hard_examples(losses, anchors, ~ignore, count, nms_iou)
    max_positives = int(np.ceil(count / (1 + negatives_per_positive)))
    positives = hard_examples(losses, anchors, foreground, max_positives, nms_iou)
    background = ~foreground & ~ignore
    negatives = hard_examples(losses, anchors, background, count - max_positives, nms_iou)
    max_negatives = negatives_per_positive * jnp.maximum(positives.sum(), 1)
    order = jnp.argsort(jnp.where(negatives, -losses, jnp.inf))
    rank = jnp.zeros(losses.shape, jnp.int32).at[order].set(jnp.arange(losses.shape[0]))
    return positives | (negatives & (rank < max_negatives))
