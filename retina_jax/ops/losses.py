"""Classification losses, one pure function each: the loss of an anchor, summed over its classes.

All take logits ``[*n, c]`` of any float dtype and labels ``[*n]`` (the class of a foreground
anchor, -1 for background), and give ``[*n]`` in float32, finite with a finite gradient for logits
up to 1e30 in size. Sums, ignored anchors and normalisers belong to `retina_jax.training.objective`.

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
    """Keeps for the gradient nothing beyond the arguments: logits are the largest array there is,

    and autodiff would keep several more of ``[anchors, classes]`` for a few cheap operations.
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
      logits: a class each; an anchor's classes are independent.
      labels: class, or -1.
      alpha: weight of the logits whose class is there; ``1 - alpha`` of all others.
      gamma: focusing exponent, 0 or more.

    The power is taken in the logarithm. The gradient keeps the logits alone.
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

    The appendix writes it without α; the weights of the focal loss are kept, as it says that all
    other settings are. ``alpha=0.5`` is half of the formula as printed.
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
    """``-α_t (1 - p_t)^γ log p_t`` with ``p_t`` the softmax of the anchor's own class.

    The last of the ``c`` logits is background; α weighs foreground anchors, ``1 - alpha`` the
    background. γ = 0 with α = 0.5 is half the softmax cross entropy.
    """

    @_recomputed
    def loss(logits):
        logits = logits.astype(jnp.float32)
        target = jnp.where(labels >= 0, labels, logits.shape[-1] - 1)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        log_p_t = jnp.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]
        # log(1 - p_t) as the log-sum of all others: 1 - p_t would cancel to 0 near p_t = 1
        own = jax.nn.one_hot(target, logits.shape[-1], dtype=bool)
        log_not_p_t = jax.nn.logsumexp(jnp.where(own, -jnp.inf, log_p), axis=-1)
        alpha_t = jnp.where(labels >= 0, alpha, 1 - alpha)
        focusing = jnp.exp(gamma * log_not_p_t) if gamma else 1.0
        return -alpha_t * focusing * log_p_t

    return loss(logits)


def hard_examples(
    losses: Float[Array, "a"],
    anchors: Float[Array, "a 4"],
    allowed: Bool[Array, "a"],
    count: int,
    nms_iou: float,
) -> Bool[Array, "a"]:
    """The ``count`` anchors of highest loss after NMS, one image (OHEM, arXiv:1604.03540).

    Greedily the highest loss among the allowed is chosen and all that overlap it above
    ``nms_iou`` are put aside; fewer are chosen where fewer remain. ``nms_iou=1`` is no NMS.
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
    """Which anchors of one image make OHEM's batch of ``count`` (section 5.3).

    With ``negatives_per_positive`` (3 in SSD and the paper's "OHEM 1:3") the batch holds at most
    ``count / (1 + negatives_per_positive)`` foreground anchors and that many times as much
    background, the hardest of each; an image without foreground counts as having one.
    """
    if not negatives_per_positive:
        return hard_examples(losses, anchors, ~ignore, count, nms_iou)
    most = int(np.ceil(count / (1 + negatives_per_positive)))
    positives = hard_examples(losses, anchors, foreground, most, nms_iou)
    background = ~foreground & ~ignore
    negatives = hard_examples(losses, anchors, background, count - most, nms_iou)
    wanted = negatives_per_positive * jnp.maximum(positives.sum(), 1)
    order = jnp.argsort(jnp.where(negatives, -losses, jnp.inf))
    rank = jnp.zeros(losses.shape, jnp.int32).at[order].set(jnp.arange(losses.shape[0]))
    return positives | (negatives & (rank < wanted))
