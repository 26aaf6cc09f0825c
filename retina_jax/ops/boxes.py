"""Box arithmetic: formats, areas, IoU and the box coder. Boxes are xyxy, half-open, in pixels."""

import math

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from retina_jax.types import Array

DELTA_CLAMP = math.log(1000.0 / 16)
"""Upper limit of dw and dh in `decode` (torchvision, Detectron2); keeps boxes finite."""


def coco_xywh_to_xyxy(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """COCO's ``[x, y, width, height]`` to ``[x1, y1, x2, y2]``; pixels, any float dtype."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def xyxy_to_coco_xywh(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """``[x1, y1, x2, y2]`` to COCO's ``[x, y, width, height]``; pixels, any float dtype."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def tfds_yxyx_to_xyxy(
    boxes: Float[np.ndarray, "n 4"], height: int, width: int
) -> Float[np.ndarray, "n 4"]:
    """TFDS's normalised float32 ``[ymin, xmin, ymax, xmax]`` to pixels, float64.

    Rounds to 1/1000 pixel, which restores the decimals of COCO annotations.
    """
    scale = np.array([width, height, width, height], np.float64)
    return np.round(boxes[:, [1, 0, 3, 2]].astype(np.float64) * scale, 3)


def area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Width times height, pixels²; 0 for a box with a negative side."""
    size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return size[..., 0] * size[..., 1]


def pairwise_intersection(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Intersection area of each pair, pixels²."""

    def side(low: int, high: int) -> Array:
        # coordinate by coordinate: an array [n, m, 2] would be written to memory
        start = jnp.maximum(a[:, None, low], b[None, :, low])
        return jnp.maximum(jnp.minimum(a[:, None, high], b[None, :, high]) - start, 0)

    return side(0, 2) * side(1, 3)


def pairwise_iou(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union of each pair, 0 to 1; 0 for boxes without area."""
    intersection = pairwise_intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)


def paired_iou(a: Float[Array, "*n 4"], b: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Intersection over union of each pair ``a[i], b[i]``, 0 to 1; 0 for boxes without area."""
    size = jnp.maximum(jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2]), 0)
    intersection = size[..., 0] * size[..., 1]
    union = area(a) + area(b) - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)


def clip(boxes: Float[Array, "*n 4"], height: ArrayLike, width: ArrayLike) -> Array:
    """Boxes clipped to an image of ``height`` × ``width`` pixels."""
    x = jnp.clip(boxes[..., 0::2], 0, width)
    y = jnp.clip(boxes[..., 1::2], 0, height)
    return jnp.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], axis=-1)


def _centre_and_size(boxes: Float[Array, "*n 4"]) -> tuple[Array, Array]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def encode(
    boxes: Float[Array, "*n 4"],
    anchors: Float[Array, "*n 4"],
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*n 4"]:
    """Deltas ``(dx, dy, dw, dh)`` that map ``anchors`` to ``boxes`` (R-CNN, arXiv:1311.2524).

    ``dx = wx (x - xa) / wa`` with centres x, and ``dw = ww log(w / wa)``. Boxes and anchors must
    have area; for masked entries, pass the anchor as the box.
    """
    centre, size = _centre_and_size(boxes)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    shift = (centre - anchor_centre) / anchor_size
    stretch = jnp.log(size / anchor_size)
    return jnp.concatenate([shift, stretch], axis=-1) * jnp.asarray(weights, jnp.float32)


def decode(
    deltas: Float[Array, "*n 4"],
    anchors: Float[Array, "*n 4"],
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = DELTA_CLAMP,
) -> Float[Array, "*n 4"]:
    """The inverse of `encode`; dw and dh are clipped to ``clamp``. Float32, pixels."""
    deltas = deltas.astype(jnp.float32) / jnp.asarray(weights, jnp.float32)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre = deltas[..., :2] * anchor_size + anchor_centre
    size = jnp.exp(jnp.minimum(deltas[..., 2:], clamp)) * anchor_size
    return jnp.concatenate([centre - 0.5 * size, centre + 0.5 * size], axis=-1)
