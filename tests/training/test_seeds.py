"""Several seeds in one program: each is the run that it would be alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_network
from test_step import batch_of, program_of

from retina_jax.models import retinanet
from retina_jax.models.depthwise import depthwise_conv_3x3
from retina_jax.parallel import Devices, fetch
from retina_jax.training import seeds
from retina_jax.training import step as training_step
from retina_jax.training.optimizer import learning_rate_schedule
from retina_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("shallow")
SEEDS = (0, 1, 2)


def compare(config, devices, steps, build, change=lambda states: states, images=8):
    """Takes steps with each seed alone and with all together, on the same batches.

    Compares weights and metrics; returns the states before, and the last ones.
    """
    model, optimizer, alone = program_of(config, devices, build)
    devices = Devices.local(devices)
    step = make_train_step(model, optimizer, learning_rate_schedule(config), config)
    together = devices.train_step(seeds.together(step))
    init = jax.jit(training_step._init(model, optimizer, config))  # `init_state`, compiled once
    first = change([fetch(init(jax.random.key(seed))) for seed in SEEDS])
    stacked = devices.replicate(seeds.stack(first))
    single = [devices.replicate(state) for state in first]
    for number in range(steps):
        batch = devices.shard(jax.tree.map(lambda x: x[:images], batch_of(number % 4)))
        stacked, metrics = together(stacked, batch)
        single, own = zip(*(alone(state, batch) for state in single), strict=True)
    stacked, metrics = fetch(stacked), fetch(metrics)
    assert stacked.step == steps
    last = [seeds.unstack(stacked, i) for i in range(len(SEEDS))]
    for i, (state, values) in enumerate(zip(single, own, strict=True)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            last[i],
            fetch(state),
        )
        for name, value in fetch(values).items():
            np.testing.assert_allclose(metrics[name][i], value, rtol=1e-5, atol=1e-6, err_msg=name)
    return first, last


def moved(before, after):
    """The largest change of a weight."""
    changes = jax.tree.map(lambda a, b: np.abs(a - b).max(), before.params, after.params)
    return max(jax.tree.leaves(changes))


def test_twenty_steps_equal_those_of_single_runs(tiny_config):
    tiny_config.train.ema = 0.99
    tiny_config.model.head_norm = "none"  # of a 1x1 map with one channel a group, the norm is 0
    # at the rate of the experiment, training from scratch on noise is chaotic: within ten steps,
    # the last bit of a weight grows to a hundredth, however the step is compiled
    tiny_config.optimizer.learning_rate = 0.01
    first, last = compare(tiny_config, 1, 20, retinanet.build, images=3)
    assert all(moved(a, b) > 1e-3 for a, b in zip(first, last, strict=True))
    assert moved(last[0], last[1]) > 1e-2


def test_devices_and_micro_batches_share_the_batch_of_all_seeds(tiny_config):
    tiny_config.model.norm = "batch"
    tiny_config.train.accumulate = 2
    tiny_config.loss.classification = "ohem"
    tiny_config.optimizer.learning_rate = 0.001
    compare(tiny_config, 2, 2, small_network.build)


def test_a_seed_that_is_not_finite_does_not_stop_the_others(tiny_config):
    def break_one(states):
        params = jax.tree.map(lambda x: np.full_like(x, np.nan), states[1].params)
        return [states[0], states[1].replace(params=params), states[2]]

    tiny_config.loss.normalizer = "ema"
    tiny_config.optimizer.name = "adamw"
    tiny_config.optimizer.schedule = "plateau"
    tiny_config.optimizer.learning_rate = 0.001
    first, last = compare(tiny_config, 2, 2, small_network.build, break_one)
    assert all(moved(first[i], last[i]) > 0 for i in (0, 2))
    assert np.isnan(moved(first[1], last[1]))


def test_depthwise_convolutions_of_several_kernels():
    """The one layer whose gradients are written by hand, with a form for each platform."""
    x, kernel = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(
        ((3, 2, 8, 6, 4), (3, 3, 3, 1, 4))))  # fmt: skip

    def value(x, kernel, stride):
        return jnp.sum(depthwise_conv_3x3(x, kernel, stride) ** 2)

    for stride in (1, 2):
        of = jax.value_and_grad(lambda x, k, s=stride: value(x, k, s), (0, 1))
        together = jax.jit(jax.vmap(of))(x, kernel)
        alone = [jax.jit(of)(*each) for each in zip(x, kernel, strict=True)]
        jax.tree.map(
            lambda a, *b: np.testing.assert_allclose(a, np.stack(b), rtol=2e-5, atol=1e-5),
            together, *alone,
        )  # fmt: skip
