"""Class-wise non-maximum suppression on the device: a fixed number of boxes, as on the host.

The host (`evaluation.nms`) decides in float64, which TPUs lack. Here a number is the sum of two
float32, a pair ``(high, low)``, with about 45 significant bits. Both sides let an IoU exceed the
threshold by `SLACK` before a box is dropped. Rounding errors are far smaller than that, so they
decide nothing, and both keep the same boxes in the same order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from retina_jax.types import Array, Candidates

SLACK = 1e-9
"""Relative excess over the IoU threshold that does not count, so an IoU equal to it never does."""

Pair = tuple[Array, Array]


def keep_best(candidates: Candidates, iou_threshold: float, max_detections: int) -> Candidates:
    """NMS over the ``k`` candidates of one image, of which those with score 0 are padding.

    Greedy by score (ties by row): drops each box whose IoU with a kept box of its class exceeds
    ``iou_threshold``. Returns ``max_detections`` boxes of all classes, highest score first; score 0
    marks padding, whose boxes and labels are 0. Needs memory for ``k`` values, and one pass over
    them for each box that it keeps. Source: section 4.1, "Inference".
    """
    boxes, labels = jnp.asarray(candidates.boxes), jnp.asarray(candidates.labels)
    share = iou_threshold * (1 + SLACK)
    # shared > share · (own + other - shared)  <=>  shared > factor · own + factor · other
    factor = _constant(share / (1 + share))
    parts = _times(factor, _area(boxes, boxes))

    def choose(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, remaining, kept = state
        best = jnp.argmax(remaining)
        own = boxes[best]
        limit = _plus(parts, (parts[0][best], parts[1][best]))
        excess = _plus(_area(boxes, own), (-limit[0], -limit[1]))
        overlaps = (excess[0] > 0) & (labels == labels[best])
        remaining = jnp.where(overlaps, 0.0, remaining).at[best].set(0.0)
        return count + 1, remaining, kept.at[count].set(best)

    def continues(state: tuple[Array, Array, Array]) -> Array:
        count, remaining, _ = state
        return (count < max_detections) & (remaining.max() > 0)

    remaining = jnp.where(candidates.scores > 0, candidates.scores, 0.0)
    none = jnp.full(max_detections, len(labels), jnp.int32)
    _, _, kept = jax.lax.while_loop(continues, choose, (jnp.int32(0), remaining, none))
    return jax.tree.map(lambda values: values.at[kept].get(mode="fill", fill_value=0), candidates)


def cut_to_image(detections: Candidates, height: ArrayLike, width: ArrayLike) -> Candidates:
    """Clips the boxes of `keep_best` to their image; those left without area become padding.

    The order stays, with padding last (`evaluation.nms.clip_to_image`).
    """
    low, high = jnp.zeros(4), jnp.stack([width, height, width, height]).astype(jnp.float32)
    boxes = jnp.clip(detections.boxes, low, high)
    there = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (detections.scores > 0)
    order = jnp.argsort(~there, stable=True)

    def moved(values: Array) -> Array:
        mask = there.reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(mask, values, 0)[order]

    return jax.tree.map(moved, detections.replace(boxes=boxes))


def _area(a: Float[Array, "k 4"], b: Float[Array, "*_ 4"]) -> Pair:
    """Area that boxes share with ``b``, one box or as many; 0 without a common area."""
    sides = []
    for low, high in ((0, 2), (1, 3)):
        end = jnp.minimum(a[:, high], b[..., high])
        start = jnp.maximum(a[:, low], b[..., low])
        side = _sum(end, -start)
        sides.append(tuple(jnp.where(end > start, part, 0.0) for part in side))
    return _times(*sides)


# Compilers may join a product and a sum into one instruction that rounds once (fused multiply-add).
# Here this changes nothing that counts: products are exact, but for those below the low part.


def _constant(value: float) -> Pair:
    high = np.asarray(value, np.float32)
    return high, np.asarray(value - float(high), np.float32)


def _sum(a: Array, b: Array) -> Pair:
    """The exact sum of two numbers (Knuth's TwoSum)."""
    high = a + b
    other = high - a
    return high, (a - (high - other)) + (b - other)


def _plus(a: Pair, b: Pair) -> Pair:
    high, low = _sum(a[0], b[0])
    return _sum(high, low + (a[1] + b[1]))


def _times(a: Pair, b: Pair) -> Pair:
    (a1, a2), (b1, b2) = _halves(a[0]), _halves(b[0])
    high, low = _sum(a1 * b1, a1 * b2)  # products of twelve bits each are exact
    high, more = _sum(high, a2 * b1)
    return _sum(high, (low + more) + (a2 * b2 + (a[0] * b[1] + a[1] * b[0])))


def _halves(value: Array) -> Pair:
    """Two numbers of at most twelve significant bits whose sum is ``value``."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(value, jnp.float32), jnp.int32)
    high = jax.lax.bitcast_convert_type(bits & np.int32(-4096), jnp.float32)
    return high, value - high
