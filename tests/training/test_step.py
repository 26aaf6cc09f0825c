"""One step: the same on any number of devices, whatever each holds; faults; what learns."""

import json

import jax
import numpy as np
import pytest
import small_network
from support import is_quick

from retina_jax.models import retinanet
from retina_jax.parallel import AXIS, Devices, fetch
from retina_jax.training.optimizer import build_optimizer, learning_rate_schedule
from retina_jax.training.step import make_train_step
from retina_jax.types import Batch, GroundTruth

pytestmark = pytest.mark.usefixtures("shallow")


def batch_of(seed, images=8, boxes_in=(0, 7, 1, 0, 3, 8, 0, 2), size=64, most=8):
    """Noise with very unequal numbers of boxes; one of them a crowd."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, size - 24, (images, most, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 24, (images, most, 2))], axis=-1)
    valid = np.arange(most) < np.array(boxes_in)[:images, None]
    crowd = np.zeros((images, most), bool)
    crowd[5, 0] = True
    return Batch(
        images=rng.integers(0, 256, (images, size, size, 3)).astype(np.uint8),
        sizes=np.tile(np.array([[size, size]], np.int32), (images, 1)),
        original_sizes=np.tile(np.array([[size, size]], np.int32), (images, 1)),
        ground_truth=GroundTruth(
            boxes=boxes.astype(np.float32),
            labels=rng.integers(0, 5, (images, most)).astype(np.int32),
            valid=valid,
            is_crowd=crowd,
        ),
        index=np.arange(images, dtype=np.int32),
        example_mask=np.ones(images, bool),
        cut_away=np.zeros(images, np.int32),
    )


@pytest.fixture
def one_step(quick_init):
    """Takes steps: the state before and after, and the last step's metrics; NumPy."""

    def take(*arguments, **options):
        return take_steps(quick_init, *arguments, **options)

    return take


_programs, _initial = {}, {}


def program_of(config, devices, build):
    """Model, optimizer and step; compiled once for all tests with this config and these devices."""
    key = config.to_json(), devices, build, is_quick()  # quick programs are not to be mixed in
    if key not in _programs:
        model = build(config, 5, AXIS)
        optimizer = build_optimizer(config)
        step = make_train_step(model, optimizer, learning_rate_schedule(config), config)
        _programs[key] = model, optimizer, Devices.local(devices).train_step(step)
    return _programs[key]


def initial_state(init_state, model, optimizer, config):
    """Drawn once for all tests with these fields."""
    parts = [config[part].to_dict() for part in ("model", "optimizer", "loss")]
    key = type(model), json.dumps(parts)
    if key not in _initial:
        _initial[key] = fetch(init_state(model, optimizer, config))
    return _initial[key]


def take_steps(
    init_state, config, batch, devices=1, steps=1, change=lambda state: state, build=retinanet.build
):
    model, optimizer, step = program_of(config, devices, build)
    before = change(initial_state(init_state, model, optimizer, config))
    devices = Devices.local(devices)
    state = devices.replicate(before)
    for _ in range(steps):
        state, metrics = step(state, devices.shard(batch))
    return before, fetch(state), fetch(metrics)


@pytest.fixture
def plain(tiny_config):
    """What tests have in common that need nothing else, so that they share one program."""
    # group norm of a 1x1 map with one channel a group is 0: at 64 px P7 could not learn
    tiny_config.model.head_norm = "none"
    tiny_config.loss.normalizer = "ema"
    return tiny_config


@pytest.mark.parametrize(
    ("norm", "counts"),
    [
        ("frozen", (2,)),
        pytest.param("batch", (8,), marks=pytest.mark.optimized),
        ("group", (8,)),
    ],
)
def test_1_2_and_8_devices_take_the_same_step(one_step, tiny_config, norm, counts):
    config = tiny_config
    config.model.norm = norm
    config.model.head_convs = 0  # nothing in a tower crosses devices but batch norm, tested below
    batch = batch_of(0)
    _, alone, alone_metrics = one_step(config, batch, devices=1, steps=2)
    for count in counts:
        _, shared, metrics = one_step(config, batch, devices=count, steps=2)
        for name, value in alone_metrics.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), shared, alone
        )


@pytest.mark.optimized
def test_bfloat16_steps_near_float32(one_step, tiny_config):
    tiny_config.model.norm = "batch"  # one program is that of the test above
    tiny_config.model.head_convs = 0
    batch = batch_of(5)
    _, full, metrics = one_step(tiny_config, batch)
    tiny_config.train.precision = "bfloat16"
    _, half, half_metrics = one_step(tiny_config, batch)
    np.testing.assert_allclose(half_metrics["loss"], metrics["loss"], rtol=0.02)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(half.params))
    assert all(x.dtype == y.dtype for x, y in zip(jax.tree.leaves(half), jax.tree.leaves(full),
                                                  strict=True))  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"loss.normalizer": "per_image", "loss.box": "giou"},
        {
            "loss.normalizer": "ema",
            "model.head_norm": "batch",
            "matching.kind": "atss",
            "model.centerness": True,
            "model.box_scale_per_level": True,
        },
        {"loss.normalizer": "foreground_plus_1", "loss.classification": "softmax_focal"},
        {"loss.classification": "ohem", "loss.ohem_examples": 16, "loss.ohem_negatives": 3.0},
        {"model.class_specific_boxes": True, "optimizer.name": "adamw"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_2_devices_take_the_same_step_with_every_normaliser_and_loss(
    one_step, tiny_config, changes
):
    tiny_config.update_from_flattened_dict(changes)
    tiny_config.optimizer.learning_rate = 0.01
    tiny_config.model.head_convs = int(tiny_config.model.head_norm == "batch")
    batch = batch_of(0)
    of_the_heads = any(name.startswith("model.") for name in changes)
    build = retinanet.build if of_the_heads else small_network.build
    _, alone, alone_metrics = one_step(tiny_config, batch, devices=1, steps=2, build=build)
    _, shared, metrics = one_step(tiny_config, batch, devices=2, steps=2, build=build)
    for name, value in alone_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    # Adam divides a gradient by its size: where it is nothing but rounding, the sign is chance
    bar = 1e-5 if tiny_config.optimizer.name == "sgd" else 5e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=bar),
                 shared.params, alone.params)  # fmt: skip
    assert alone.loss_normalizer == shared.loss_normalizer
    if tiny_config.model.centerness:
        head = alone.params["box_head"]
        assert np.abs(head["centerness"]["kernel"]).max() > 0
        assert head["scale3"] != 1
        total = metrics["loss_classification"] + metrics["loss_box"] + metrics["loss_centerness"]
        np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)


def test_the_average_of_the_normaliser_is_state(one_step, plain):
    before, after, metrics = one_step(plain, batch_of(0))
    assert before.loss_normalizer == 100
    expected = 0.9 * 100 + 0.1 * metrics["foreground_anchors"]
    np.testing.assert_allclose(after.loss_normalizer, expected, rtol=1e-6)


def test_frozen_stages_stay_bit_for_bit(one_step, tiny_config):
    tiny_config.model.frozen_stages = 3
    before, after, _ = one_step(tiny_config, batch_of(1), steps=2)
    for part in ("params", "batch_stats"):
        old, new = (getattr(state, part)["backbone"] for state in (before, after))
        for module in old:
            same = all(
                map(np.array_equal, jax.tree.leaves(old[module]), jax.tree.leaves(new[module]))
            )
            assert same == module.startswith(("stem", "stage2", "stage3")), module


def test_every_parameter_learns(one_step, plain):
    before, after, _ = one_step(plain, batch_of(1))
    still = [
        jax.tree_util.keystr(path)
        for (path, old), new in zip(
            jax.tree_util.tree_leaves_with_path(before.params),
            jax.tree.leaves(after.params),
            strict=True,
        )
        if np.array_equal(old, new)
    ]
    assert still == []


def test_frozen_norms_do_not_move(one_step, tiny_config):
    tiny_config.model.norm = "frozen"
    tiny_config.model.head_convs = 0
    before, after, _ = one_step(tiny_config, batch_of(1))
    norm_of = lambda state: state.params["backbone"]["stage2_block0"]["norm1"]  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, norm_of(before), norm_of(after))


def test_padding_and_order_of_boxes_change_nothing(one_step, plain):
    batch = batch_of(2)
    truth = batch.ground_truth

    def pad(x):
        return np.concatenate([x, np.zeros_like(x)], axis=1)

    padded = batch.replace(ground_truth=jax.tree.map(pad, truth))
    order = np.random.default_rng(0).permutation(8)
    permuted = batch.replace(ground_truth=jax.tree.map(lambda x: x[:, order], truth))
    _, expected, metrics = one_step(plain, batch)
    for other in (padded, permuted):
        _, state, other_metrics = one_step(plain, other)
        np.testing.assert_allclose(other_metrics["loss"], metrics["loss"], rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            state.params,
            expected.params,
        )


def test_images_without_boxes_are_trained_as_background(one_step, plain):
    empty = batch_of(3, boxes_in=(0,) * 8)
    _, _, metrics = one_step(plain, empty)
    assert metrics["foreground_anchors"] == 0
    assert metrics["loss_classification"] > 0
    assert metrics["loss_box"] == 0
    assert metrics["finite"]


def test_a_loss_that_is_not_finite_reaches_no_weight(one_step, plain):
    def explode(state):
        grow = lambda path, x: x * 1e38 if "predict" in jax.tree_util.keystr(path) else x  # noqa: E731
        return state.replace(params=jax.tree_util.tree_map_with_path(grow, state.params))

    before, kept, metrics = one_step(plain, batch_of(4), steps=2, change=explode)
    assert not metrics["finite"]
    assert kept.step == 2
    for name in ("params", "batch_stats", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(kept, name))
