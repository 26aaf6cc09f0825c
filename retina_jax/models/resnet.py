"""ResNet-18 to 152 (arXiv:1512.03385), with torchvision's padding and stride in the 3x3."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from retina_jax.models.layers import Conv

STAGE_BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BASIC = ("resnet18", "resnet34")

Norm = Callable[[str, int], nn.Module]


def max_pool_3x3_stride_2(x):
    """Max pool with a padding of 1, as torch has it; height and width must be even.

    As maxima of strided slices: XLA on CPU runs the gradient of a windowed maximum fifteen
    times slower, and on accelerators the slices fuse.
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
    """Two 3x3 convolutions beside a shortcut."""

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
    """1x1, 3x3 and a widening 1x1 convolution beside a shortcut."""

    channels: int
    stride: int
    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x):
        channels, norm = self.channels, self.norm
        y = Conv(channels, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm("norm1", channels)(y))
        y = Conv(channels, 3, self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(norm("norm2", channels)(y))
        y = Conv(4 * channels, 1, dtype=self.dtype, name="conv3")(y)
        y = norm("norm3", 4 * channels)(y)
        if x.shape != y.shape:
            x = Conv(4 * channels, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(x)
            x = norm("shortcut_norm", 4 * channels)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """``[n, h, w, 3]`` to the stages C3, C4 and C5, of strides 8, 16 and 32."""

    backbone: str
    width: int
    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x):
        block = BasicBlock if self.backbone in BASIC else Bottleneck
        x = Conv(self.width, 7, 2, dtype=self.dtype, name="stem_conv")(x)
        x = nn.relu(self.norm("stem_norm", self.width)(x))
        x = max_pool_3x3_stride_2(x)
        stages = []
        for stage, blocks in enumerate(STAGE_BLOCKS[self.backbone]):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"stage{stage + 2}_block{index}"
                x = block(self.width * 2**stage, stride, self.norm, self.dtype, name=name)(x)
            stages.append(x)
        return stages[1:]
