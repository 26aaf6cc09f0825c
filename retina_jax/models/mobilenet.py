"""MobileNetV2 (arXiv:1801.04381), in torchvision's form; torch's padding."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from retina_jax.config.backbones import BACKBONES
from retina_jax.models.backbone import STAGES, Backbone, Norm
from retina_jax.models.layers import Conv, DepthwiseConv


def relu6(x):
    """``min(max(x, 0), 6)``; torch's gradient, which is 0 at both limits."""
    return jnp.where(x < 6, nn.relu(x), jnp.asarray(6, x.dtype))


class InvertedResidual(nn.Module):
    """A widening 1x1, a depthwise 3x3 and a narrowing 1x1 convolution, with a shortcut.

    The shortcut is left out where the block changes the shape. Nothing follows the last norm.
    """

    expansion: int
    """Channels of the 3x3 convolution, relative to the input; 1: there is no widening."""
    channels: int
    """Output channels."""
    stride: int
    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x):
        inner, norm = self.expansion * x.shape[-1], self.norm
        y = x
        if self.expansion > 1:
            y = Conv(inner, 1, dtype=self.dtype, name="expand")(y)
            y = relu6(norm("expand_norm", inner)(y))
        y = DepthwiseConv(self.stride, dtype=self.dtype, name="depthwise")(y)
        y = relu6(norm("depthwise_norm", inner)(y))
        y = Conv(self.channels, 1, dtype=self.dtype, name="project")(y)
        y = norm("project_norm", self.channels)(y)
        return x + y if x.shape == y.shape else y


class MobileNetV2(Backbone):
    """The stem, at stride 2, includes the first block; a stage ends before the next halving.

    So C3, C4 and C5 are torchvision's features 6, 13 and 17, with 32, 96 and 320 channels.
    """

    def _block(self, stage: int, name: str, expansion: int, published: int, stride: int):
        block = self._rematerialised(InvertedResidual)
        channels = BACKBONES[self.backbone].channels(published, self.width)
        return block(expansion, channels, stride, self._norm_of(stage), self.dtype, name=name)

    @nn.compact
    def __call__(self, x):
        kind = BACKBONES[self.backbone]
        stem = kind.channels(kind.stem, self.width)
        x = Conv(stem, 3, 2, dtype=self.dtype, name="stem_conv")(x)
        x = relu6(self._norm_of(1)("stem_norm", stem)(x))
        x = self._block(1, "stem_block", 1, kind.stem_block, 1)(x)
        x = self._stop_if_frozen(1, x)
        stages = []
        for stage, groups in zip(STAGES, kind.stages, strict=True):
            widths = [channels for channels, blocks in groups for _ in range(blocks)]
            for index, published in enumerate(widths):
                name, stride = f"stage{stage}_block{index}", 1 if index else 2
                x = self._block(stage, name, kind.expansion, published, stride)(x)
            x = self._stop_if_frozen(stage, x)
            stages.append(x)
        return stages[1:]
