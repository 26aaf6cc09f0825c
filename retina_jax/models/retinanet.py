"""The complete network: backbone, FPN and heads; images to `Predictions`."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float, Int, UInt8

from retina_jax.config import resolve
from retina_jax.config.backbones import BACKBONES, InvertedKind
from retina_jax.models.backbone import Backbone
from retina_jax.models.fpn import FPN
from retina_jax.models.heads import Head, prior_bias
from retina_jax.models.layers import make_norm
from retina_jax.models.mobilenet import MobileNetV2
from retina_jax.models.resnet import ResNet
from retina_jax.ops.anchors import level_strides, pyramid_anchors
from retina_jax.types import Array, Predictions


def backbone_of(name: str) -> type[Backbone]:
    """The module of a backbone, by its name in `config.backbones.BACKBONES`."""
    return MobileNetV2 if isinstance(BACKBONES[name], InvertedKind) else ResNet


class RetinaNet(nn.Module):
    """Maps normalised images ``[n, h, w, 3]`` to `Predictions`, by level.

    The outputs do not depend on ``train``: no sigmoid and no decoding.
    """

    config: ml_collections.FrozenConfigDict
    num_classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train: bool) -> Predictions:
        config = self.config.model
        dtype = jnp.dtype(self.config.train.precision)

        def norm(kind):
            return make_norm(
                kind, train, config.norm_eps, dtype, self.axis_name, config.norm_momentum
            )

        stages = backbone_of(config.backbone)(
            config.backbone,
            config.width,
            norm(config.norm),
            norm("frozen" if config.norm == "batch" else config.norm),
            dtype,
            config.stride_in_1x1,
            config.frozen_stages,
            config.remat,
            name="backbone",
        )(images)
        pyramid = FPN(config.fpn_channels, config.p6_from, dtype, name="fpn")(stages)
        head = partial(
            Head,
            anchors_per_place=resolve(self.config).anchors_per_place,
            convs=config.head_convs,
            channels=config.head_channels,
            norm=None if config.head_norm == "none" else norm(config.head_norm),
            norm_per_level=config.head_norm == "batch",
            predictor_std=config.predictor_std,
            dtype=dtype,
        )
        resolved = resolve(self.config)
        outputs = self.num_classes + resolved.background_logits
        bias = prior_bias(config.prior, outputs if resolved.softmax else 0)
        logits, _ = head(outputs, bias_init=bias, name="class_head")(pyramid)
        boxes_of_anchor = self.num_classes if config.class_specific_boxes else 1
        values = resolved.box_values
        boxes, centerness = head(
            values * boxes_of_anchor,
            bias_init=nn.initializers.zeros,
            centerness=config.centerness,
            scale_per_level=config.box_scale_per_level,
            name="box_head",
        )(pyramid)
        boxes = [x.reshape(*x.shape[:2], boxes_of_anchor, values) for x in boxes]
        return Predictions(logits, boxes, centerness)


def build(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> RetinaNet:
    """The network of ``config``; batch statistics are averaged over devices of ``axis_name``."""
    return RetinaNet(ml_collections.FrozenConfigDict(config), num_classes, axis_name)


def normalize_images(
    images: UInt8[Array, "n h w 3"] | Float[Array, "n h w 3"], sizes: Int[Array, "n 2"], data: Any
) -> Float[Array, "n h w 3"]:
    """Normalises pixels (RGB, 0 to 255) for the network; padding beyond ``sizes`` becomes 0.

    ``data`` is the config's group: channels are put in ``pixel_order``, then ``mean`` is subtracted
    and the result divided by ``std``; both are in ``pixel_order``.
    """
    _, height, width, _ = images.shape
    rows = jnp.arange(height)[None, :, None, None] < sizes[:, 0, None, None, None]
    columns = jnp.arange(width)[None, None, :, None] < sizes[:, 1, None, None, None]
    if data.pixel_order == "BGR":
        images = images[..., ::-1]
    pixels = (images.astype(jnp.float32) - jnp.asarray(data.mean)) / jnp.asarray(data.std)
    return jnp.where(rows & columns, pixels, 0.0)


def anchors_for(config: ml_collections.ConfigDict, image_size: tuple[int, int]) -> list[Any]:
    """Anchors of each level for an input of ``(height, width)`` pixels; NumPy constants."""
    return pyramid_anchors(image_size, **config.anchors)


def strides_for(
    config: ml_collections.ConfigDict, image_size: tuple[int, int]
) -> Float[np.ndarray, "levels 2"]:
    """(horizontal, vertical) distance of the anchor centres of each level of `anchors_for`."""
    strides = level_strides(image_size, config.anchors.stride_from)
    return np.array([stride[::-1] for stride in strides], np.float32)
