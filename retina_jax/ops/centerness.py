"""Centerness (FCOS, arXiv:1904.01355, as ATSS, arXiv:1912.02424, defines it for anchors)."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from retina_jax.types import Array


def centerness(boxes: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """How central the centre of each anchor is in its box, 0 to 1; float32.

    ``√(min(l, r) / max(l, r) · min(t, b) / max(t, b))`` of the distances from the anchor's centre
    to the left, right, top and bottom of the box: 1 in the middle, 0 on a side. Also 0 where the
    centre lies outside the box, as it can when anchors are matched by IoU, and for a box without
    area. Boxes are in pixels.
    """
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    before, after = centre - boxes[..., :2], boxes[..., 2:] - centre
    near, far = jnp.minimum(before, after), jnp.maximum(before, after)
    ratio = jnp.where(far > 0, jnp.maximum(near, 0) / jnp.where(far > 0, far, 1), 0)
    return jnp.sqrt(ratio[..., 0] * ratio[..., 1])


def centerness_loss(logits: Float[Array, "*n"], targets: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Binary cross entropy with targets from 0 to 1: ``-t log p - (1 - t) log(1 - p)``."""
    return jax.nn.softplus(logits) - targets * logits
