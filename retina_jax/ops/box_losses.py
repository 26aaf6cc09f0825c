"""Box losses as pure functions of deltas or of decoded boxes.

Losses of decoded boxes take xyxy in pixels, float32, and return one value per box. Values and
gradients are finite, even for boxes without area.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from retina_jax.ops.boxes import area
from retina_jax.types import Array

_EPSILON = 1e-7
"""Added to denominators, as in torchvision and fvcore."""


def smooth_l1(
    predictions: Float[Array, "*n"], targets: Float[Array, "*n"], beta: float
) -> Float[Array, "*n"]:
    """``x² / 2β`` for ``|x| < β``, otherwise ``|x| - β / 2``; β = 0 is L1.

    Float32, elementwise. Source: Fast R-CNN (arXiv:1504.08083), with Detectron2's β.
    """
    difference = jnp.abs(predictions.astype(jnp.float32) - targets)
    if beta == 0:
        return difference
    return jnp.where(difference < beta, 0.5 * difference**2 / beta, difference - 0.5 * beta)


def _overlap(a: Array, b: Array) -> tuple[Array, Array]:
    """Intersection and union of each pair ``a[i], b[i]``, pixels²."""
    top_left = jnp.maximum(a[..., :2], b[..., :2])
    bottom_right = jnp.minimum(a[..., 2:], b[..., 2:])
    size = jnp.maximum(bottom_right - top_left, 0)
    intersection = size[..., 0] * size[..., 1]
    return intersection, area(a) + area(b) - intersection


def _hull(a: Array, b: Array) -> Array:
    """Width and height ``[*n, 2]`` of the smallest box that encloses each pair."""
    return jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])


def giou_loss(boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """``1 - GIoU``, 0 to 2 (arXiv:1902.09630)."""
    intersection, union = _overlap(boxes, targets)
    hull = _hull(boxes, targets).prod(-1)
    giou = intersection / (union + _EPSILON) - (hull - union) / (hull + _EPSILON)
    return 1 - giou


def _diou_parts(boxes: Array, targets: Array) -> tuple[Array, Array]:
    """IoU, and squared centre distance / squared diagonal of the enclosing box."""
    intersection, union = _overlap(boxes, targets)
    diagonal = (_hull(boxes, targets) ** 2).sum(-1)
    centres = (boxes[..., :2] + boxes[..., 2:] - targets[..., :2] - targets[..., 2:]) / 2
    distance = (centres**2).sum(-1) / (diagonal + _EPSILON)
    return intersection / (union + _EPSILON), distance


def diou_loss(boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """``1 - IoU + ρ² / c²`` (arXiv:1911.08287)."""
    iou, distance = _diou_parts(boxes, targets)
    return 1 - iou + distance


def ciou_loss(boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """DIoU loss plus ``α v``, the aspect-ratio term; α has no gradient (arXiv:1911.08287)."""
    iou, distance = _diou_parts(boxes, targets)
    angle = [
        jnp.arctan((b[..., 2] - b[..., 0]) / (b[..., 3] - b[..., 1] + _EPSILON))
        for b in (targets, boxes)
    ]
    v = 4 / np.pi**2 * (angle[0] - angle[1]) ** 2
    alpha = jax.lax.stop_gradient(v / (1 - iou + v + _EPSILON))
    return 1 - iou + distance + alpha * v
