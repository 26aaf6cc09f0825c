"""Losses, element by element; sums and normalisers belong to the step."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from retina_jax.types import Array


def sigmoid_focal_loss(
    logits: Float[Array, "*n"],
    targets: Float[Array, "*n"],
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*n"]:
    """Sigmoid focal loss of each logit, float32 (arXiv:1708.02002, section 3, equation 5).

    ``FL(p_t) = -α_t (1 - p_t)^γ log(p_t)`` with ``p_t = p`` where the target is 1 and ``1 - p``
    elsewhere, and α_t likewise; γ = 0 with α = 0.5 is half the cross entropy.

    Args:
      logits: any float dtype; the arithmetic is float32.
      targets: 0 or 1.
      alpha: weight of the targets that are 1.
      gamma: focusing exponent, 0 or more.

    Powers are taken in the logarithm, so that value and gradient are finite for every finite
    logit and every γ.
    """
    logits = logits.astype(jnp.float32)
    signed = jnp.where(targets > 0.5, logits, -logits)
    log_p_t = jax.nn.log_sigmoid(signed)
    log_not_p_t = jax.nn.log_sigmoid(-signed)
    alpha_t = jnp.where(targets > 0.5, alpha, 1 - alpha)
    return -alpha_t * jnp.exp(gamma * log_not_p_t) * log_p_t


def smooth_l1(
    predictions: Float[Array, "*n"], targets: Float[Array, "*n"], beta: float
) -> Float[Array, "*n"]:
    """``|x|`` with its corner rounded to ``x² / 2β`` inside β, shifted to meet; β = 0 is L1.

    Float32. Source: Fast R-CNN (arXiv:1504.08083), with Detectron2's β.
    """
    difference = jnp.abs(predictions.astype(jnp.float32) - targets)
    if beta == 0:
        return difference
    return jnp.where(difference < beta, 0.5 * difference**2 / beta, difference - 0.5 * beta)
