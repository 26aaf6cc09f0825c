"""Convolution and normalisation layers of the backbone, the FPN and the heads."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Initializer = Callable[..., Any]

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""torchvision's initialisation of ResNets."""
lecun_uniform_fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""torch's ``kaiming_uniform_(a=1)``, the initialisation of FPNs."""
relu = jax.jit(nn.relu, inline=True)
"""Traced once for each shape, as `_convolve` and `_scale_and_shift` are."""


def float32_param(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]):
    """`nn.Module.param`, which traces ``init`` anew at each use, only to compare shapes.

    That is a seventh of the time to a first step with a compiled program at hand.
    """
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, init, shape, jnp.float32)


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
        kernel = float32_param(self, "kernel", self.kernel_init, shape)
        bias = None
        if self.use_bias:
            bias = float32_param(self, "bias", self.bias_init, (self.features,))
        return _convolve(x, kernel, bias, self.stride, self.groups, self.dtype)


@partial(jax.jit, static_argnums=(3, 4, 5), inline=True)
def _convolve(x, kernel, bias, stride: int, groups: int, dtype):
    """The function of `Conv`.

    Jitted so that each of its few shapes is traced and differentiated once, and inlined so that the
    program is the same as without: tracing is most of the time to the first step of a restart.
    """
    x, kernel, size = x.astype(dtype), kernel.astype(dtype), kernel.shape[0]
    if size == 1:
        # as a matrix product: XLA on CPU computes the weight gradient of a 1x1 convolution
        # several times slower than that of the equivalent product
        x = x[:, ::stride, ::stride]
        x = jnp.einsum("nhwi,io->nhwo", x, kernel[0, 0])
    else:
        pad = size // 2
        x = lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
    return x if bias is None else x + bias.astype(dtype)


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
        scale = float32_param(self, "scale", nn.initializers.ones_init(), channels)
        bias = float32_param(self, "bias", nn.initializers.zeros_init(), channels)
        return _scale_and_shift(x, scale, bias, mean, var, self.epsilon, self.dtype)


@partial(jax.jit, static_argnums=(5, 6), inline=True)
def _scale_and_shift(x, scale, bias, mean, var, epsilon: float, dtype):
    """The function of `FrozenNorm`; jitted like `_convolve`."""
    multiplier = lax.stop_gradient(scale * lax.rsqrt(var + epsilon))
    offset = lax.stop_gradient(bias) - mean * multiplier
    return x * multiplier.astype(dtype) + offset.astype(dtype)


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
