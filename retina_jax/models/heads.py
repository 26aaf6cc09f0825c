"""The class and box towers: shared over levels, apart from each other (section 4)."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from retina_jax.models.layers import Conv, group_norm


class Head(nn.Module):
    """A tower of 3x3 convolutions and one that predicts ``outputs`` numbers for each anchor.

    Called once a level with the same parameters: ``[n, h, w, c]`` to
    ``[n, h · w · anchors, outputs]``, float32, in the order of the anchors.
    """

    outputs: int
    anchors_per_place: int
    convs: int
    channels: int
    norm: str
    norm_eps: float
    bias: float
    dtype: Any

    @nn.compact
    def __call__(self, pyramid):
        conv = partial(
            Conv,
            kernel=3,
            use_bias=True,
            kernel_init=nn.initializers.normal(0.01),
            dtype=self.dtype,
        )
        tower = []
        for i in range(self.convs):
            tower.append(conv(self.channels, name=f"conv{i}"))
            if self.norm == "group":
                tower.append(group_norm(self.norm_eps, self.dtype, self.channels, f"norm{i}"))
            tower.append(nn.relu)
        predict = conv(
            self.anchors_per_place * self.outputs,
            bias_init=nn.initializers.constant(self.bias),
            name="predict",
        )
        levels = []
        for x in pyramid:
            for layer in tower:
                x = layer(x)
            x = predict(x).astype(jnp.float32)
            levels.append(x.reshape(x.shape[0], -1, self.outputs))
        return levels


def prior_bias(prior: float) -> float:
    """Logit of ``prior``: else background swamps the loss at step 0 (section 3.3)."""
    return -math.log((1 - prior) / prior)
