"""Boxes as distributions of the distances from an anchor's centre to the sides of its box.

The distances are those to the left, top, right and bottom side, in strides of the anchor's level,
and each has a distribution over the values 0, 1, …, n. Source: Generalized Focal Loss
(arXiv:2006.04388), section 3.2. Float32; values and gradients are finite for logits up to ±1e30.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from retina_jax.ops.boxes import DELTA_CLAMP, decode
from retina_jax.types import Array

MARGIN = 0.1
"""A target lies at least this far below n, so that two values enclose it (the authors' code)."""


def encode_distances(
    boxes: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"], strides: Float[Array, "*#n 2"]
) -> Float[Array, "*n 4"]:
    """Distances from the centres of ``anchors`` to the sides of ``boxes``, in strides.

    Boxes and anchors are xyxy in pixels; ``strides`` are (horizontal, vertical) in pixels. A
    distance is negative if the centre lies beyond that side.
    """
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    sides = [(centre - boxes[..., :2]) / strides, (boxes[..., 2:] - centre) / strides]
    return jnp.concatenate(sides, axis=-1)


def decode_distances(
    distances: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"], strides: Float[Array, "*#n 2"]
) -> Float[Array, "*n 4"]:
    """The inverse of `encode_distances`: xyxy, pixels."""
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    corners = [centre - distances[..., :2] * strides, centre + distances[..., 2:] * strides]
    return jnp.concatenate(corners, axis=-1)


def integral(logits: Float[Array, "*n bins"]) -> Float[Array, "*n"]:
    """``Σ i · softmax(logits)_i`` over the values i = 0 to n (equation 5): the mean, 0 to n."""

    @jax.checkpoint  # the backward pass keeps the logits and nothing else of their size
    def mean(logits):
        values = jnp.arange(logits.shape[-1], dtype=jnp.float32)
        return (jax.nn.softmax(logits.astype(jnp.float32), axis=-1) * values).sum(-1)

    return mean(logits)


def decode_outputs(
    outputs: Float[Array, "*n values"],
    anchors: Float[Array, "*n 4"],
    strides: Float[Array, "*#n 2"] | None = None,
    bins: int = 0,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = DELTA_CLAMP,
) -> Float[Array, "*n 4"]:
    """The boxes that outputs of the box head stand for: float32, xyxy, pixels.

    With ``bins`` of 0, the outputs are 4 deltas, which `boxes.decode` takes with ``weights`` and
    ``clamp``. Otherwise they are the logits of the distributions of the four sides, over the values
    0 to ``bins``, and each side is at the mean distance, in ``strides`` (horizontal, vertical).
    """
    if not bins:
        return decode(outputs, anchors, weights, clamp)
    distances = integral(outputs.reshape(*outputs.shape[:-1], 4, bins + 1))
    return decode_distances(distances, anchors, strides)


def distribution_focal_loss(
    logits: Float[Array, "*n bins"], targets: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """``DFL = -((i + 1 - y) log S_i + (y - i) log S_{i+1})`` with ``i ≤ y < i + 1`` (equation 6).

    S is the softmax of ``logits``, over the values 0 to n. ``targets`` are y, clipped to
    0 … n - `MARGIN`. The minimum is at ``S_i = i + 1 - y``, ``S_{i+1} = y - i``: the distribution
    over the two neighbours whose mean is y. Only the logits are stored for the backward pass.
    """
    targets = jnp.clip(targets, 0, logits.shape[-1] - 1 - MARGIN)

    @jax.checkpoint
    def loss(logits):
        values = jnp.arange(logits.shape[-1], dtype=jnp.float32)
        # of the values, i and i + 1 are less than 1 from y: no other has a weight
        weights = jnp.maximum(1 - jnp.abs(values - targets[..., None]), 0)
        return -(weights * jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)).sum(-1)

    return loss(logits)
