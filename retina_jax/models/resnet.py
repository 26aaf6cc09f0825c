"""ResNet (arXiv:1512.03385), ResNeXt (1611.05431), Wide ResNet (1605.07146); torch's padding."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from retina_jax.config.backbones import BACKBONES
from retina_jax.models.backbone import STAGES, Backbone, Norm
from retina_jax.models.layers import Conv


def max_pool_3x3_stride_2(x):
    """Max pool with padding 1, as in torch; height and width must be even.

    Computed as maxima of strided slices: on CPU, XLA's gradient of a windowed maximum is fifteen
    times slower; on accelerators, the slices fuse.
    """
    for axis in (1, 2):
        pads = [(0, 0)] * 4
        pads[axis] = (1, 1)
        padded = jnp.pad(x, pads, constant_values=-jnp.inf)
        size = x.shape[axis]
        first, second, third = (
            lax.slice_in_dim(padded, start, start + size - 1, 2, axis) for start in range(3)
        )
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    channels: int
    stride: int
    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x):
        channels, norm = self.channels, self.norm
        y = Conv(channels, 3, self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm("norm1", channels)(y))
        y = Conv(channels, 3, dtype=self.dtype, name="conv2")(y)
        y = norm("norm2", channels)(y)
        if x.shape != y.shape:
            x = Conv(channels, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(x)
            x = norm("shortcut_norm", channels)(x)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and widening 1x1 convolutions with a shortcut."""

    inner: int
    """Channels of the 3x3 convolution."""
    channels: int
    """Output channels."""
    stride: int
    groups: int
    stride_in_1x1: bool
    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x):
        inner, channels, norm = self.inner, self.channels, self.norm
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        y = Conv(inner, 1, first, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm("norm1", inner)(y))
        y = Conv(inner, 3, second, self.groups, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(norm("norm2", inner)(y))
        y = Conv(channels, 1, dtype=self.dtype, name="conv3")(y)
        y = norm("norm3", channels)(y)
        if x.shape != y.shape:
            x = Conv(channels, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(x)
            x = norm("shortcut_norm", channels)(x)
        return nn.relu(x + y)


class ResNet(Backbone):
    """`Backbone` of residual blocks, in the form that ``backbone`` names."""

    def _block(self, stage: int, index: int) -> nn.Module:
        kind = BACKBONES[self.backbone]
        planes = self.width * 2 ** (stage - 2)
        shared = dict(
            stride=2 if stage > 2 and index == 0 else 1,
            norm=self._norm_of(stage),
            dtype=self.dtype,
            name=f"stage{stage}_block{index}",
        )
        block = self._rematerialised(Bottleneck if kind.bottleneck else BasicBlock)
        if not kind.bottleneck:
            return block(channels=planes, **shared)
        return block(
            inner=max(1, planes * kind.width_per_group // 64) * kind.groups,
            channels=4 * planes,
            groups=kind.groups,
            stride_in_1x1=self.stride_in_1x1,
            **shared,
        )

    @nn.compact
    def __call__(self, x):
        x = Conv(self.width, 7, 2, dtype=self.dtype, name="stem_conv")(x)
        x = nn.relu(self._norm_of(1)("stem_norm", self.width)(x))
        x = self._stop_if_frozen(1, max_pool_3x3_stride_2(x))
        stages = []
        for stage, blocks in zip(STAGES, BACKBONES[self.backbone].blocks, strict=True):
            for index in range(blocks):
                x = self._block(stage, index)(x)
            x = self._stop_if_frozen(stage, x)
            stages.append(x)
        return stages[1:]
