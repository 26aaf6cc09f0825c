"""MobileNetV2: torchvision's parameter count, widths and strides; freezing; export to ONNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retina_jax.config.backbones import BACKBONES
from retina_jax.models.backbone import is_frozen
from retina_jax.models.layers import make_norm
from retina_jax.models.mobilenet import InvertedResidual, MobileNetV2, relu6

KIND = BACKBONES["mobilenet_v2"]
# torchvision's published count less its classifier (1280 features to 1000 classes, with bias) and
# its last convolution (320 to 1280 channels, with a norm)
PARAMETERS = 3_504_872 - (1280 * 1000 + 1000) - (320 * 1280 + 2 * 1280)


def network(width=64, norm="frozen", **options):
    norm, frozen = (make_norm(k, True, 1e-5, jnp.float32, None) for k in (norm, "frozen"))
    return MobileNetV2("mobilenet_v2", width, norm, frozen, jnp.float32, **options)


def shapes_of(model, size=(64, 96)):
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


def test_parameter_count_is_torchvisions():
    _, variables = shapes_of(network())
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == PARAMETERS


def test_stages_have_strides_8_16_32():
    stages, _ = shapes_of(network())
    assert [x.shape[1:] for x in stages] == [(8, 12, 32), (4, 6, 96), (2, 3, 320)]


def test_widths_are_rounded_as_torchvision_does():
    """Multiples of 8, and at least nine tenths of the scaled number."""
    assert [KIND.channels(c, 32) for c in (16, 24, 32, 96, 320)] == [8, 16, 16, 48, 160]
    assert KIND.channels(24, 48) == 24  # 18 would become 16, which is less than 16.2
    for width in (8, 48, 96):
        stages, _ = shapes_of(network(width))
        assert tuple(x.shape[-1] for x in stages) == KIND.stage_channels(width)


def test_relu6_has_no_slope_at_its_limits():
    x = jnp.array([-1.0, 0.0, 3.0, 6.0, 7.0])
    np.testing.assert_array_equal(relu6(x), [0, 0, 3, 6, 6])
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu6))(x), [0, 0, 1, 0, 0])


@pytest.mark.parametrize(
    ("channels", "stride", "adds"), [(8, 1, True), (8, 2, False), (16, 1, False)]
)
def test_a_shortcut_where_the_shape_stays(channels, stride, adds):
    norm = make_norm("frozen", False, 1e-5, jnp.float32, None)
    block = InvertedResidual(6, channels, stride, norm, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 8))
    variables = jax.tree.map(jnp.zeros_like, block.init(jax.random.key(1), x))
    y = block.apply(variables, x)  # all branches are zero
    np.testing.assert_array_equal(y, x if adds else jnp.zeros_like(y))


@pytest.mark.parametrize("frozen_stages", [0, 2])
def test_frozen_stages_have_no_gradient_and_keep_their_statistics(frozen_stages):
    model = network(8, "batch", frozen_stages=frozen_stages)
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)

    @jax.jit
    def gradient(params):
        def loss(params):
            stages, state = model.apply(
                {**variables, "params": params}, images, mutable=["batch_stats"]
            )
            return sum((x**2).mean() for x in stages), state["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    gradients, statistics = gradient(variables["params"])
    for module in gradients:
        frozen = is_frozen(("backbone", module), frozen_stages)
        moved = any(np.any(g) for g in jax.tree.leaves(gradients[module]))
        assert moved != frozen, module
        if module in statistics:
            before = variables["batch_stats"][module]
            same = jax.tree.all(jax.tree.map(np.array_equal, statistics[module], before))
            assert same == frozen, module
    first, stages = int(frozen_stages > 0), {f"stage{s}" for s in range(2, frozen_stages + 1)}
    names = {m.split("_")[0] for m in gradients if is_frozen(("backbone", m), frozen_stages)}
    assert names == ({"stem"} if first else set()) | stages
