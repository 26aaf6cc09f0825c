"""The class and box heads: shared across levels, but not with each other (section 4)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from retina_jax.models.layers import Conv
from retina_jax.ops.anchors import LEVELS

Bias = Callable[[int], Any]


class Head(nn.Module):
    """A tower of 3x3 convolutions, and one that predicts ``outputs`` values per anchor.

    Applies the same convolutions to every level: ``[n, h, w, c]`` to
    ``[n, h · w · anchors, outputs]``, float32, in anchor order. A convolution before a norm has no
    bias. Group norm is shared across levels; batch norm is separate for each level, because the
    statistics differ (TF Model Garden).

    Returns two lists over levels. The second has the values of one more convolution on the same
    tower, with ``centerness``: ``[n, h · w · anchors]``; without it, it is None. With
    ``scale_per_level``, a learned scalar of each level, 1 at first, multiplies the first (FCOS).
    """

    outputs: int
    anchors_per_place: int
    convs: int
    channels: int
    norm: Callable[[str, int], nn.Module] | None
    norm_per_level: bool
    bias_init: nn.initializers.Initializer
    predictor_std: float
    dtype: Any
    centerness: bool = False
    scale_per_level: bool = False

    @nn.compact
    def __call__(self, pyramid):
        conv = partial(Conv, kernel=3, dtype=self.dtype)
        in_tower = partial(
            conv,
            self.channels,
            use_bias=self.norm is None,
            kernel_init=nn.initializers.normal(0.01),
        )
        tower = [in_tower(name=f"conv{i}") for i in range(self.convs)]
        norms = {}
        if self.norm:
            prefixes = [f"level{level}_" for level in LEVELS] if self.norm_per_level else [""]
            for prefix in prefixes:
                norms[prefix] = [
                    self.norm(f"{prefix}norm{i}", self.channels) for i in range(self.convs)
                ]
        predictor = partial(
            conv, use_bias=True, kernel_init=nn.initializers.normal(self.predictor_std)
        )
        predict = predictor(
            self.anchors_per_place * self.outputs, bias_init=self.bias_init, name="predict"
        )
        centre = predictor(self.anchors_per_place, name="centerness") if self.centerness else None
        levels, centerness = [], []
        for level, x in zip(LEVELS, pyramid, strict=True):
            of_level = norms.get(f"level{level}_") or norms.get("")
            for i, layer in enumerate(tower):
                x = layer(x)
                x = nn.relu(of_level[i](x) if of_level else x)
            if centre:
                central = centre(x).astype(jnp.float32)
                centerness.append(central.reshape(central.shape[0], -1))
            x = predict(x).astype(jnp.float32)
            if self.scale_per_level:
                x *= self.param(f"scale{level}", nn.initializers.ones, (), jnp.float32)
            levels.append(x.reshape(x.shape[0], -1, self.outputs))
        return levels, centerness if self.centerness else None


def prior_bias(prior: float, softmax_classes: int = 0) -> nn.initializers.Initializer:
    """Biases with which an anchor predicts an object with probability ``prior`` at step 0.

    Otherwise background dominates the loss (section 3.3). For sigmoid, the prior applies to each
    class. With ``softmax_classes`` logits, the last one, background, gets the remainder.
    """
    if not softmax_classes:
        return nn.initializers.constant(-math.log((1 - prior) / prior))

    def init(key, shape, dtype=jnp.float32):
        del key
        background = math.log((softmax_classes - 1) * (1 - prior) / prior)
        one_anchor = jnp.zeros(softmax_classes, dtype).at[-1].set(background)
        return jnp.tile(one_anchor, shape[0] // softmax_classes)

    return init
