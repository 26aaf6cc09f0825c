"""Convolution and normalisation layers of the backbone, the FPN and the heads."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from retina_jax.models.depthwise import depthwise_conv_3x3
from retina_jax.types import Array

Initializer = Callable[..., Any]

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""torchvision's initialisation of ResNets."""
lecun_uniform_fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""torch's ``kaiming_uniform_(a=1)``, the initialisation of FPNs."""


@jax.custom_vjp
def pointwise_conv(
    x: Float[Array, "n h w i"], kernel: Float[Array, "i o"]
) -> Float[Array, "n h w o"]:
    """A 1x1 convolution, as a matrix product.

    XLA on CPU computes the weight gradient of a 1x1 convolution several times slower than that of
    the equivalent product.
    """
    return jnp.einsum("nhwi,io->nhwo", x, kernel)


def _pointwise_forward(x, kernel):
    return pointwise_conv(x, kernel), (x, kernel)


def _pointwise_backward(saved, gradient):
    x, kernel = saved
    of_x = jnp.einsum("nhwo,io->nhwi", gradient, kernel)
    # XLA on CPU transposes the left operand, together with all that it fuses with it, so the
    # narrower one is put there
    if kernel.shape[0] <= kernel.shape[1]:
        return of_x, jnp.einsum("nhwi,nhwo->io", x, gradient)
    return of_x, jnp.einsum("nhwo,nhwi->oi", gradient, x).T


pointwise_conv.defvjp(_pointwise_forward, _pointwise_backward)


class Conv(nn.Module):
    """Convolution of NHWC with torch's padding of ``kernel // 2`` on every side (not SAME)."""

    features: int
    kernel: int
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = he_normal_fan_out
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.kernel == 1:
            if self.stride > 1:  # as indices, a batch of unknown size would be gathered
                x = lax.slice(x, (0, 0, 0, 0), x.shape, (1, self.stride, self.stride, 1))
            x = pointwise_conv(x, kernel[0, 0])
        else:
            pad = self.kernel // 2
            x = lax.conv_general_dilated(
                x,
                kernel,
                (self.stride, self.stride),
                ((pad, pad), (pad, pad)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=self.groups,
            )
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            x = x + bias.astype(self.dtype)
        return x


class DepthwiseConv(nn.Module):
    """3x3 convolution of each channel on its own, with torch's padding of 1."""

    stride: int = 1
    kernel_init: Initializer = he_normal_fan_out
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (3, 3, 1, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        return depthwise_conv_3x3(x.astype(self.dtype), kernel, self.stride)


class FrozenNorm(nn.Module):
    """Batch norm with fixed statistics: an affine map without gradients for its parameters.

    Its parameters have the names of batch norm, so weights fit both.
    """

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32).value
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32).value
        scale = self.param("scale", nn.initializers.ones_init(), channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), channels, jnp.float32)
        multiplier = lax.stop_gradient(scale * lax.rsqrt(var + self.epsilon))
        offset = lax.stop_gradient(bias) - mean * multiplier
        return x * multiplier.astype(self.dtype) + offset.astype(self.dtype)


def group_norm(epsilon: float, dtype: Any, channels: int, name: str) -> nn.Module:
    """Group norm with 32 groups (arXiv:1803.08494), or the largest common divisor with channels."""
    groups = math.gcd(32, channels)
    return nn.GroupNorm(num_groups=groups, epsilon=epsilon, dtype=dtype, name=name)


def make_norm(
    kind: str,
    train: bool,
    epsilon: float,
    dtype: Any,
    axis_name: str | None,
    momentum: float = 0.9,
) -> Callable[[str, int], nn.Module]:
    """A factory ``(name, channels) -> norm``; ``kind`` is frozen, batch or group.

    Batch statistics are averaged over the devices of ``axis_name``, so results do not depend on
    the number of devices; ``momentum`` is the weight of the old value.
    """
    if kind == "frozen":
        return lambda name, channels: FrozenNorm(epsilon, dtype, name=name)
    if kind == "group":
        return lambda name, channels: group_norm(epsilon, dtype, channels, name)
    batch_norm = partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=momentum,
        epsilon=epsilon,
        dtype=dtype,
        axis_name=axis_name if train else None,
    )
    return lambda name, channels: batch_norm(name=name)
