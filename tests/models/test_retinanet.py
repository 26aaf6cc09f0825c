"""The whole network: shapes that fit the anchors, the prior, normalisation, precision."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retina_jax.config import default_config
from retina_jax.models import retinanet
from retina_jax.ops.postprocess import class_scores

pytestmark = pytest.mark.usefixtures("shallow")


def small(**changes):
    config = default_config()
    config.model.backbone = "resnet18"
    config.model.width = 8
    config.model.fpn_channels = config.model.head_channels = 16
    config.model.head_convs = 1
    config.model.norm = "batch"
    config.train.precision = "float32"
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def initial(model, size=(64, 64)):
    """Compiled: operation by operation it takes several times as long."""
    images = jnp.zeros((2, *size, 3))
    return jax.jit(lambda x: model.init(jax.random.key(1), x, train=False))(images)


def drawn(model):
    """Weights and statistics without meaning, which need no compilation."""
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(1), x, train=False), images)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name, fan_in = path[-1].key, max(1, math.prod(leaf.shape[:-1]))
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(0, fan_in**-0.5 if name == "kernel" else 0.1, leaf.shape).astype(
            np.float32
        )

    return jax.tree_util.tree_map_with_path(draw, shapes)


def images_of(size):
    return jax.random.normal(jax.random.key(0), (2, *size, 3))


def outputs(config, size, classes=4, variables=None):
    model = retinanet.build(config, classes)
    run = jax.jit(lambda v, x: model.apply(v, x, train=False))
    return run(variables or initial(model), images_of(size))


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (32, 224)])
def test_outputs_fit_the_anchors_level_by_level(size):
    config = small()
    predictions = outputs(config, size)
    counts = [len(a) for a in retinanet.anchors_for(config, size)]
    assert [x.shape for x in predictions.logits] == [(2, n, 4) for n in counts]
    assert [x.shape for x in predictions.box_outputs] == [(2, n, 1, 4) for n in counts]


def test_every_anchor_begins_near_the_prior():
    logits = outputs(small(**{"model.head_convs": 4}), (64, 64)).logits
    probabilities = np.concatenate([jax.nn.sigmoid(x).ravel() for x in logits])
    np.testing.assert_allclose(probabilities, 0.01, rtol=0.1)


def test_a_box_for_each_class():
    deltas = outputs(small(**{"model.class_specific_boxes": True}), (64, 64)).box_outputs
    assert {x.shape[2:] for x in deltas} == {(4, 4)}


def test_distributions_for_the_sides_of_a_box():
    model = retinanet.build(small(**{"loss.box": "dfl", "loss.dfl_bins": 7}), 4)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    made = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, False), images)
    counts = [len(a) for a in retinanet.anchors_for(model.config, (64, 64))]
    assert [x.shape for x in made[0].box_outputs] == [(2, n, 1, 4 * 8) for n in counts]


def test_centerness_and_scales_belong_to_the_box_head():
    config = small(**{"model.centerness": True, "model.box_scale_per_level": True})
    variables = initial(retinanet.build(config, 4))
    plain = initial(retinanet.build(small(), 4))
    assert set(plain["params"]["box_head"]) == {"conv0", "predict"}
    scales = {f"scale{level}" for level in range(3, 8)}
    assert set(variables["params"]["box_head"]) == {"conv0", "predict", "centerness", *scales}
    assert set(variables["params"]["class_head"]) == {"conv0", "predict"}
    found = outputs(config, (64, 64), variables=variables)
    assert [x.shape for x in found.centerness] == [x.shape[:2] for x in found.logits]
    for level in range(3, 8):
        variables["params"]["box_head"][f"scale{level}"] = np.float32(level)
    scaled = outputs(config, (64, 64), variables=variables)
    for level in range(3, 8):
        before, after = (x.box_outputs[level - 3] for x in (found, scaled))
        np.testing.assert_allclose(after, level * before, rtol=1e-5, atol=1e-9)
        np.testing.assert_array_equal(found.centerness[level - 3], scaled.centerness[level - 3])


def test_softmax_begins_with_the_prior_shared_over_classes():
    logits = outputs(small(**{"loss.classification": "softmax_focal"}), (64, 64)).logits
    scores = np.concatenate([class_scores(x, softmax=True).reshape(-1, 4) for x in logits])
    np.testing.assert_allclose(scores.sum(-1), 0.01, rtol=0.2)


def test_batch_norm_in_the_heads_is_each_levels_own():
    config = small(**{"model.head_norm": "batch", "model.head_convs": 2})
    model = retinanet.build(config, 4)
    variables = initial(model)
    head = variables["params"]["class_head"]
    norms = {f"level{level}_norm{i}" for level in range(3, 8) for i in range(2)}
    assert set(head) == {"conv0", "conv1", "predict", *norms}
    assert set(head["conv0"]) == {"kernel"}  # a norm stands behind it
    step = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    _, updated = step(variables, images_of((64, 64)))
    means = [updated["batch_stats"]["class_head"][f"level{k}_norm0"]["mean"] for k in (3, 4)]
    assert not np.allclose(*means)


@pytest.mark.parametrize("source", ["C5", "P5"])
def test_p6_takes_its_source(source):
    config = small(**{"model.p6_from": source})
    model = retinanet.build(config, 4)
    shape = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
    )
    assert shape["params"]["fpn"]["p6"]["kernel"].shape[2] == {"C5": 64, "P5": 16}[source]


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
@pytest.mark.parametrize("head_norm", ["none", "group", "batch"])
def test_bfloat16_is_near_float32(norm, head_norm):
    changes = {"model.norm": norm, "model.head_norm": head_norm}
    config = small(**changes)
    variables = drawn(retinanet.build(config, 4))
    full = outputs(config, (64, 64), variables=variables).logits
    config.train.precision = "bfloat16"
    half = outputs(config, (64, 64), variables=variables).logits
    assert all(x.dtype == jnp.float32 for x in half)
    spread = max(float(np.ptp(x)) for x in full)
    assert all(float(jnp.abs(a - b).max()) < 0.1 * spread + 0.02
               for a, b in zip(full, half, strict=True))  # fmt: skip


def test_normalize_blacks_out_what_lies_beyond_the_picture():
    images = np.full((2, 4, 6, 3), 128, np.uint8)
    sizes = np.array([[4, 6], [2, 3]], np.int32)
    data = small(**{"data.mean": (120.0, 128.0, 130.0), "data.std": (4.0, 1.0, 2.0)}).data
    out = np.asarray(retinanet.normalize_images(images, sizes, data))
    np.testing.assert_allclose(out[0, 0, 0], [2, 0, -1])
    np.testing.assert_allclose(out[1, 1, 2], [2, 0, -1])
    assert (out[1, 2:] == 0).all()
    assert (out[1, :, 3:] == 0).all()


def test_bgr_turns_the_pixels_before_mean_and_std():
    images = np.zeros((1, 1, 1, 3), np.uint8) + np.array([10, 20, 30], np.uint8)
    data = small(**{"data.pixel_order": "BGR", "data.mean": (1.0, 2.0, 3.0),
                    "data.std": (1.0, 1.0, 7.0)}).data  # fmt: skip
    out = np.asarray(retinanet.normalize_images(images, np.array([[1, 1]], np.int32), data))
    np.testing.assert_allclose(out[0, 0, 0], [29, 18, 1])


def test_rematerialisation_changes_no_loss_no_gradient_and_no_name():
    """So a checkpoint written with ``model.remat`` restores without it, and the other way."""
    plain, again = (retinanet.build(small(**{"model.remat": on}), 4) for on in (False, True))
    variables = initial(plain)
    names = jax.eval_shape(lambda: initial_names(again))
    assert jax.tree.structure(variables) == jax.tree.structure(names)

    def loss(model, params):
        predictions = model.apply(
            {**variables, "params": params}, images_of((64, 64)), train=True,
            mutable=["batch_stats"],
        )[0]  # fmt: skip
        return sum((x**2).mean() for x in jax.tree.leaves(predictions))

    results = [
        jax.jit(jax.value_and_grad(lambda p, m=model: loss(m, p)))(variables["params"])
        for model in (plain, again)
    ]
    assert results[0][0] == results[1][0]
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(results[0][1]))
    for a, b in zip(*(jax.tree.leaves(gradient) for _, gradient in results), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * scale)


def initial_names(model):
    return model.init(jax.random.key(1), jnp.zeros((2, 64, 64, 3)), train=False)
