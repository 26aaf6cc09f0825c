"""3x3 depthwise convolution, in the form that is fastest on each platform.

On TPUs and GPUs it is XLA's grouped convolution. XLA for CPUs computes that at least ten times
slower than the nine multiplications and additions that it stands for, and its gradients two to five
times slower, so on CPUs these are written out (`retina-jax benchmark depthwise` compares the two).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from retina_jax.types import Array

_TAPS = tuple((i, j) for i in range(3) for j in range(3))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv_3x3(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 1 c"], stride: int
) -> Float[Array, "n oh ow c"]:
    """Convolves each channel with its own kernel; torch's padding of 1, stride 1 or 2.

    Sums in float32; the result has the dtype of ``x``.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_sum_of_taps, stride=stride),
        default=functools.partial(grouped_convolution, stride=stride),
    )


def _forward(x, kernel, stride):
    return depthwise_conv_3x3(x, kernel, stride), (x, kernel)


def _backward(stride, saved, gradient):
    return lax.platform_dependent(
        *saved,
        gradient,
        cpu=functools.partial(_gradients_of_taps, stride=stride),
        default=functools.partial(_gradients_of_grouped, stride=stride),
    )


depthwise_conv_3x3.defvjp(_forward, _backward)


def grouped_convolution(x, kernel, stride):
    """`depthwise_conv_3x3` as one XLA convolution with a group per channel."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _gradients_of_grouped(x, kernel, gradient, stride):
    return jax.vjp(functools.partial(grouped_convolution, stride=stride), x, kernel)[1](gradient)


def _sum_of_taps(x, kernel, stride):
    x = lax.optimization_barrier(x)  # or XLA fuses what computes x into each of the nine taps
    weights = kernel.astype(jnp.float32)
    taps = (_shifted(x, i, j, stride) * weights[i, j, 0] for i, j in _TAPS)
    return sum(taps).astype(x.dtype)


def _gradients_of_taps(x, kernel, gradient, stride):
    x, gradient = lax.optimization_barrier((x, gradient))
    if stride == 1:
        of_x = _sum_of_taps(gradient, kernel[::-1, ::-1], 1)
    else:
        of_x = _spread(gradient, kernel, x.shape).astype(x.dtype)
    # nine sums in one pass over each row, then over the rows: XLA runs the outer loop in threads,
    # but a reduction to one vector in a single one
    products = [_shifted(x, i, j, stride) * gradient for i, j in _TAPS]
    zeros = [jnp.zeros((), p.dtype) for p in products]
    rows = lax.reduce(
        products, zeros, lambda a, b: tuple(p + q for p, q in zip(a, b, strict=True)), (2,)
    )
    of_kernel = jnp.stack([row.sum((0, 1)) for row in rows])
    return of_x, of_kernel.reshape(kernel.shape).astype(kernel.dtype)


def _shifted(x, i, j, stride):
    """What the kernel's element (i, j) is multiplied with, float32."""
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, ((0, 0, 0), (1 - i, i - 1, 0), (1 - j, j - 1, 0), (0, 0, 0)))
    if stride > 1:
        x = lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1))
    return x.astype(jnp.float32)


def _spread(gradient, kernel, shape):
    """The gradient for an input of ``shape``, at stride 2.

    An even row of the input meets the kernel's middle row alone; an odd one meets the last row at
    the output above it, and the first at the one below. The same holds for columns.
    """
    weights, gradient = kernel.astype(jnp.float32), gradient.astype(jnp.float32)
    zero = jnp.zeros((), gradient.dtype)
    below = lax.pad(gradient, zero, ((0, 0, 0), (-1, 1, 0), (0, 0, 0), (0, 0, 0)))

    def columns(rows):
        even, odd = 0.0, 0.0
        for values, i in rows:
            right = lax.pad(values, zero, ((0, 0, 0), (0, 0, 0), (-1, 1, 0), (0, 0, 0)))
            even = even + values * weights[i, 1, 0]
            odd = odd + values * weights[i, 2, 0] + right * weights[i, 0, 0]
        return jnp.stack([even, odd], 3)

    pairs = jnp.stack([columns([(gradient, 1)]), columns([(gradient, 2), (below, 0)])], 2)
    n, height, _, width, _, channels = pairs.shape
    whole = pairs.reshape(n, 2 * height, 2 * width, channels)
    return whole[:, : shape[1], : shape[2]]
