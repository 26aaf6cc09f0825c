"""Backbone, pyramid and heads in one: images to logits and deltas."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jaxtyping import Float, Int, UInt8

from retina_jax.anchors import pyramid_anchors
from retina_jax.config import resolve
from retina_jax.models.fpn import FPN
from retina_jax.models.heads import Head, prior_bias
from retina_jax.models.layers import make_norm
from retina_jax.models.resnet import ResNet
from retina_jax.types import Array


class RetinaNet(nn.Module):
    """Normalised images ``[n, h, w, 3]`` to two lists over P3 to P7, whatever ``train`` is.

    Logits ``[n, anchors, classes]`` and deltas ``[n, anchors, 4]``, float32. No sigmoid and no
    decoding inside.
    """

    model: ml_collections.FrozenConfigDict
    anchors_per_place: int
    num_classes: int
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train: bool):
        config = self.model
        norm = make_norm(config.norm, train, config.norm_eps, self.dtype, self.axis_name)
        stages = ResNet(config.backbone, config.width, norm, self.dtype, name="backbone")(images)
        pyramid = FPN(config.fpn_channels, config.p6_from, self.dtype, name="fpn")(stages)
        shared = dict(
            anchors_per_place=self.anchors_per_place,
            convs=config.head_convs,
            channels=config.head_channels,
            norm=config.head_norm,
            norm_eps=config.norm_eps,
            dtype=self.dtype,
        )
        bias = prior_bias(config.prior)
        logits = Head(self.num_classes, bias=bias, name="class_head", **shared)(pyramid)
        deltas = Head(4, bias=0.0, name="box_head", **shared)(pyramid)
        return logits, deltas


def build(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> RetinaNet:
    """The network that ``config`` describes; ``axis_name`` joins batch statistics of devices."""
    return RetinaNet(
        model=ml_collections.FrozenConfigDict(config.model),
        anchors_per_place=resolve(config).anchors_per_place,
        num_classes=num_classes,
        dtype=jnp.dtype(config.train.precision),
        axis_name=axis_name,
    )


def normalize(
    images: UInt8[Array, "n h w 3"],
    sizes: Int[Array, "n 2"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Array, "n h w 3"]:
    """Pixels minus ``mean`` over ``std`` (0 to 255, RGB), zero beyond each picture's size."""
    _, height, width, _ = images.shape
    rows = jnp.arange(height)[None, :, None, None] < sizes[:, 0, None, None, None]
    columns = jnp.arange(width)[None, None, :, None] < sizes[:, 1, None, None, None]
    pixels = (images.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)
    return jnp.where(rows & columns, pixels, 0.0)


def anchors_for(config: ml_collections.ConfigDict, image_size: tuple[int, int]) -> list[Any]:
    """Anchors of each level for an input of ``(height, width)``; NumPy: constants."""
    return pyramid_anchors(image_size, **config.anchors)
