"""Micro-batches: the step of the whole batch, whatever the loss, the norm and the devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_network
from test_step import batch_of

from retina_jax.config.values import target_arguments
from retina_jax.models.retinanet import anchors_for, normalize_images
from retina_jax.ops.targets import assign_targets
from retina_jax.parallel import AXIS, Devices, fetch
from retina_jax.training import objective
from retina_jax.training.optimizer import build_optimizer, learning_rate_schedule
from retina_jax.training.step import init_state, make_train_step, state_shapes
from retina_jax.types import TrainState

LOSSES = [
    {"model.norm": "group", "optimizer.clip_norm": 0.1},
    {"loss.normalizer": "per_image", "loss.classification": "softmax_focal", "loss.box": "giou"},
    {"loss.normalizer": "foreground_plus_1", "loss.box": "l1", "model.norm": "group"},
    {"loss.normalizer": "ema", "loss.classification": "ohem", "loss.ohem_examples": 16,
     "loss.ohem_negatives": 3.0, "loss.box": "ciou"},
    {"matching.kind": "atss", "model.centerness": True, "loss.box": "giou"},
    {"loss.classification": "qfl", "loss.box": "dfl", "loss.dfl_bins": 6, "loss.box_weight": 2.0},
]  # fmt: skip


@pytest.fixture
def config(tiny_config):
    tiny_config.model.norm = "frozen"
    tiny_config.optimizer.learning_rate = 0.02
    return tiny_config


def parts_of(config):
    model, optimizer = small_network.build(config, 5, AXIS), build_optimizer(config)
    return model, optimizer, learning_rate_schedule(config), config


def steps(config, batches, devices=1, accumulate=1):
    """The state and metrics after a step on each of ``batches``; NumPy."""
    config.train.accumulate = accumulate
    devices = Devices.local(devices)
    model, optimizer, _, _ = parts = parts_of(config)
    step = devices.train_step(make_train_step(*parts))
    state = devices.replicate(init_state(model, optimizer, config))
    for batch in batches:
        state, metrics = step(state, devices.shard(batch))
    return fetch(state), fetch(metrics)


def assert_equal_to_1e_6(some, other):
    for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.max(np.abs(b), initial=0))


@pytest.mark.parametrize(
    ("changes", "devices", "accumulate"),
    [(LOSSES[0], 1, 8), *((changes, 2, 4) for changes in LOSSES[1:])],
    ids=str,
)
def test_three_steps_in_micro_batches_equal_those_of_the_whole_batch(
    config, changes, devices, accumulate
):
    """Some micro-batches are without a box, so their own count would be another."""
    config.update_from_flattened_dict(changes)
    batches = [batch_of(seed) for seed in range(3)]
    whole, metrics = steps(config, batches)
    assert metrics["loss_box"] > 0
    names = ["loss_classification", "loss_box", "foreground_anchors"]
    names += ["loss_centerness"] if config.model.centerness else []
    names += ["loss_dfl"] if config.loss.box == "dfl" else []
    np.testing.assert_allclose(
        metrics["by_level"].sum(axis=1), [metrics[name] for name in names], rtol=1e-5
    )
    own, own_metrics = steps(config, batches, devices, accumulate)
    levels, own_levels = metrics.pop("by_level"), own_metrics.pop("by_level")
    if config.loss.classification == "ohem":  # rounding decides between anchors that tie
        levels, own_levels = levels[1:], own_levels[1:]
    np.testing.assert_allclose(own_levels, levels, rtol=1e-5, atol=1e-6)
    assert_equal_to_1e_6((own, own_metrics), (whole, metrics))


def test_batch_norm_sees_one_micro_batch_after_the_other_on_any_number_of_devices(config):
    config.model.norm = "batch"
    batch = batch_of(0)
    state, metrics = steps(config, [batch], accumulate=2)
    shared, shared_metrics = steps(config, [batch], devices=2, accumulate=2)
    assert_equal_to_1e_6((shared, shared_metrics), (state, metrics))

    model = small_network.build(config, 5)
    first = init_state(model, build_optimizer(config), config)
    statistics = first.batch_stats
    apply = jax.jit(lambda *args: model.apply(*args, train=True, mutable=["batch_stats"]))
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        images = normalize_images(batch.images[rows], batch.sizes[rows], config.data)
        variables = {"params": first.params, "batch_stats": statistics}
        statistics = apply(variables, images)[1]["batch_stats"]
    assert_equal_to_1e_6(state.batch_stats, fetch(statistics))


def plain_step(model, optimizer, schedule, config):
    """The step without micro-batches and averages, written out: what their defaults must trace."""

    def over_devices(tree):
        return jax.lax.psum(tree, AXIS)

    def train_step(state, batch):
        images = normalize_images(batch.images, batch.sizes, config.data)
        anchors = np.concatenate(anchors_for(config, batch.images.shape[1:3]))
        targets = jax.vmap(
            lambda truth: assign_targets(anchors, truth, **target_arguments(config))
        )(batch.ground_truth)

        def share_of_loss(params):
            predictions, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            sums = objective.image_losses(predictions, targets, anchors, config)
            counts = objective.batch_counts(sums.foreground, sums.selected, None, over_devices)
            losses, ema = objective.normalize(sums, counts, state.loss_normalizer, config)
            classification, box = losses.classification, losses.box
            loss = classification + config.loss.box_weight * box
            levels = objective.normalize_levels(sums, counts, state.loss_normalizer, config)
            parts = classification, box, sums.foreground.sum(), levels
            return loss, (parts, ema, updated.get("batch_stats", {}))

        (loss, (parts, normalizer, batch_stats)), gradient = jax.value_and_grad(
            share_of_loss, has_aux=True
        )(state.params)
        gradient = over_devices(gradient)
        loss, (classification, box, foreground, levels) = over_devices((loss, parts))
        directions, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        rate = schedule(state.step)
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, directions)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        moved = TrainState(state.step + 1, params, batch_stats, opt_state, normalizer)
        kept = state.replace(step=state.step + 1)
        new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, kept)
        metrics = {
            "loss": loss, "loss_classification": classification, "loss_box": box,
            "foreground_anchors": foreground, "by_level": levels, "gradient_norm": norm,
            "learning_rate": rate, "finite": finite,
        }  # fmt: skip
        return new_state, metrics

    return train_step


@pytest.mark.parametrize("changes", [{"model.norm": "batch"}, *LOSSES[1:4:2]], ids=str)
def test_one_micro_batch_traces_the_step_without_any(config, changes):
    """So the default is neither slower nor other in a single bit than before micro-batches."""
    config.update_from_flattened_dict(changes)
    model, optimizer, _, _ = parts = parts_of(config)
    shapes = state_shapes(model, optimizer, config)

    def traced(step):
        program = jax.make_jaxpr(step, axis_env=[(AXIS, 2)])(shapes, batch_of(0))
        return re.sub("0x[0-9a-f]+", "", str(program))  # addresses of functions

    assert traced(make_train_step(*parts)) == traced(plain_step(*parts))
