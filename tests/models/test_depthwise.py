"""Depthwise convolution: the form for CPUs against XLA's, and which platform gets which."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from retina_jax.models.depthwise import depthwise_conv_3x3, grouped_convolution

SIZES = [(8, 10), (7, 9), (2, 3), (1, 1)]


def made(size, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, *size, 5)).astype(dtype)
    return x, jax.random.normal(keys[1], (3, 3, 1, 5)).astype(dtype)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_are_those_of_the_grouped_convolution(size, stride):
    x, kernel = made(size)

    def results(form):
        def loss(x, kernel):
            y = form(x, kernel, stride)
            return jnp.sin(y).sum(), y

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)

    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5),
        results(depthwise_conv_3x3),
        results(grouped_convolution),
    )


def test_one_pixel_by_hand():
    """A one at row 1, column 2 of a 4 × 4 image meets, at stride 2, two columns of outputs."""
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 1, 2] = 1
    kernel = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)
    # output (r, c) sums x[2r + i - 1, 2c + j - 1] · kernel[i, j]: i = 2 - 2r, j = 3 - 2c
    expected = np.array([[0, 7], [0, 1]])  # c = 0 would need j = 3, which is no column
    np.testing.assert_array_equal(depthwise_conv_3x3(x, kernel, 2)[0, :, :, 0], expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_sums_in_float32(stride):
    x, kernel = made((8, 10), jnp.bfloat16)
    y, pull = jax.vjp(lambda x, k: depthwise_conv_3x3(x, k, stride), x, kernel)
    exact = grouped_convolution(x.astype(jnp.float32), kernel.astype(jnp.float32), stride)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
    of_x, of_kernel = pull(jnp.ones_like(y))
    assert (of_x.dtype, of_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16)


def test_each_platform_gets_its_form():
    def gradient(x, kernel):
        return jax.grad(lambda x, k: depthwise_conv_3x3(x, k, 1).sum(), (0, 1))(x, kernel)

    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), made((8, 10)))
    convolutions = {}
    for platform in ("cpu", "tpu", "cuda"):
        program = jax.export.export(jax.jit(gradient), platforms=[platform])(*shapes)
        convolutions[platform] = program.mlir_module().count("stablehlo.convolution")
    assert convolutions["cpu"] == 0
    assert convolutions["tpu"] == convolutions["cuda"] >= 2
