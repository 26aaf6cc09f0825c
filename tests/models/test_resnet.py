"""ResNets: torchvision's parameter counts, torch's padding, strides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retina_jax.config.backbones import BACKBONES, ResidualKind
from retina_jax.models.backbone import is_frozen
from retina_jax.models.layers import Conv, make_norm
from retina_jax.models.resnet import ResNet, max_pool_3x3_stride_2

# torchvision's published counts less its last layer (512 or 2048 features to 1000 classes)
PARAMETERS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "resnet152": 60_192_808 - 2_049_000,
    "resnext50_32x4d": 25_028_904 - 2_049_000,
    "resnext101_32x8d": 88_791_336 - 2_049_000,
    "resnext101_64x4d": 83_455_272 - 2_049_000,
    "wide_resnet50_2": 68_883_240 - 2_049_000,
}


def run(model, variables, images):
    """Compiled: operation by operation it takes several times as long."""
    return jax.jit(model.apply)(variables, images)


def network(backbone, width=64, norm="frozen", **options):
    norm = make_norm(norm, False, 1e-5, jnp.float32, None)
    return ResNet(backbone, width, norm, norm, jnp.float32, **options)


@pytest.mark.parametrize("backbone", PARAMETERS)
def test_parameter_count_is_torchvisions(backbone):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(network(backbone).init, jax.random.key(0), images)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == PARAMETERS[backbone]


@pytest.mark.parametrize(("backbone", "widen"), [("resnet18", 1), ("resnet50", 4)])
def test_stages_have_strides_8_16_32(backbone, widen):
    model = network(backbone, width=8)
    images = jnp.zeros((2, 64, 96, 3))
    stages = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images)[0])
    expected = [(2, 64 // s, 96 // s, s * 2 * widen) for s in (8, 16, 32)]
    assert [stage.shape for stage in stages] == expected


def test_every_backbone_of_the_config_is_there():
    residual = [n for n, kind in BACKBONES.items() if isinstance(kind, ResidualKind)]
    assert residual == list(PARAMETERS)


@pytest.mark.usefixtures("shallow")
def test_stride_in_1x1_moves_the_halving_and_no_parameter():
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    plain, caffe = (network("resnet50", 8, stride_in_1x1=on) for on in (False, True))
    variables = jax.jit(plain.init)(jax.random.key(1), images)
    ours, theirs = (run(model, variables, images) for model in (plain, caffe))
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    assert not np.allclose(ours[0], theirs[0])


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("backbone", ["resnet18", "resnext50_32x4d"])
def test_rematerialisation_changes_no_gradient(backbone):
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    plain, again = (network(backbone, 8, "batch", remat=on) for on in (False, True))
    variables = jax.jit(plain.init)(jax.random.key(1), images)

    def loss(model, params):
        stages = model.apply({**variables, "params": params}, images)
        return sum((x**2).mean() for x in stages)

    gradients = [
        jax.jit(jax.grad(lambda p, m=model: loss(m, p)))(variables["params"])
        for model in (plain, again)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *gradients)
    text = str(jax.make_jaxpr(jax.grad(lambda p: loss(again, p)))(variables["params"]))
    assert "checkpoint" in text or "remat" in text


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("stages", [0, 1, 2, 5])
def test_frozen_stages_get_no_gradient_and_all_others_do(stages):
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    model = network("resnet18", 8, "batch", frozen_stages=stages)
    variables = jax.jit(model.init)(jax.random.key(1), images)

    @jax.jit
    @jax.grad
    def gradients(params):
        # a sine: batch norm would hide a plain sum
        return sum(
            jnp.sin(3 * x).sum() for x in model.apply({**variables, "params": params}, images)
        )

    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients(variables["params"])):
        names = ["backbone", *(key.key for key in path)]
        assert bool((gradient == 0).all()) == is_frozen(names, stages), names


def test_padding_is_torchs_not_same():
    # stride 2, kernel 3, padding 1 on both sides: windows begin at -1, 1, 3; SAME begins at 0
    conv = Conv(1, 3, 2)
    image = jnp.arange(36.0).reshape(1, 6, 6, 1)
    out = conv.apply({"params": {"kernel": jnp.ones((3, 3, 1, 1))}}, image)[0, :, :, 0]
    padded = np.pad(np.arange(36.0).reshape(6, 6), 1)
    expected = [[padded[y : y + 3, x : x + 3].sum() for x in (0, 2, 4)] for y in (0, 2, 4)]
    np.testing.assert_allclose(out, expected)


def test_max_pool_is_the_windowed_maximum():
    x = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    windowed = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )
    np.testing.assert_array_equal(max_pool_3x3_stride_2(x), windowed)


def test_a_1x1_convolution_is_a_dot_with_the_same_result():
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 4))
    conv = Conv(5, 1, 2)
    variables = conv.init(jax.random.key(1), x)
    plain = jax.lax.conv_general_dilated(
        x,
        variables["params"]["kernel"],
        (2, 2),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(conv.apply(variables, x), plain, rtol=1e-5, atol=1e-6)


def test_frozen_norm_is_batch_norm_on_its_statistics_and_gets_no_gradient():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    stats = {"mean": jnp.array([1.0, 2, 3]), "var": jnp.array([4.0, 5, 6])}
    params = {"scale": jnp.array([0.5, 1, 2]), "bias": jnp.array([-1.0, 0, 1])}
    variables = {"params": params, "batch_stats": stats}
    outputs = [
        make_norm(kind, False, 1e-5, jnp.float32, None)("norm", 3).apply(variables, x)
        for kind in ("frozen", "batch")
    ]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    frozen = make_norm("frozen", True, 1e-5, jnp.float32, None)("norm", 3)
    gradient = jax.grad(lambda p: frozen.apply({"params": p, "batch_stats": stats}, x).sum())(
        params
    )
    assert all((g == 0).all() for g in jax.tree.leaves(gradient))
