"""The optimiser: torch's update by hand, the schedules, what decays."""

import jax.numpy as jnp
import numpy as np

from retina_jax.config import default_config
from retina_jax.training.optimizer import build_optimizer, decay_mask, learning_rate_schedule


def config_with(**changes):
    config = default_config()
    config.optimizer.update(changes)
    return config


def test_sgd_is_torchs():
    # torch: g += wd · p after clipping; v = m · v + g; p -= lr · v
    config = config_with(
        learning_rate=0.1, learning_rate_batch=0, warmup_steps=0, weight_decay=0.01, clip_norm=1.0
    )
    optimizer = build_optimizer(config)
    params = {"conv": {"kernel": jnp.array([3.0, -4.0])}}
    state = optimizer.init(params)
    p, v = np.array([3.0, -4.0]), np.zeros(2)
    for gradient in (np.array([0.3, 0.4]), np.array([30.0, 40.0])):
        moves, state = optimizer.update({"conv": {"kernel": jnp.array(gradient)}}, state, params)
        moved = params["conv"]["kernel"] - 0.1 * moves["conv"]["kernel"]
        params = {"conv": {"kernel": moved}}
        clipped = gradient / max(1.0, np.linalg.norm(gradient))
        v = 0.9 * v + clipped + 0.01 * p
        p = p - 0.1 * v
        np.testing.assert_allclose(params["conv"]["kernel"], p, rtol=1e-6)


def test_adamw_is_torchs():
    # torch: p -= lr · (m̂ / (√v̂ + eps) + wd · p), decay off the gradient
    config = config_with(
        name="adamw", learning_rate=0.1, learning_rate_batch=0, warmup_steps=0, weight_decay=0.05
    )
    optimizer = build_optimizer(config)
    params = {"conv": {"kernel": jnp.array([3.0, -4.0])}}
    state = optimizer.init(params)
    p, m, v = np.array([3.0, -4.0]), np.zeros(2), np.zeros(2)
    for step, gradient in enumerate((np.array([0.3, -0.4]), np.array([5.0, 0.1])), 1):
        moves, state = optimizer.update({"conv": {"kernel": jnp.array(gradient)}}, state, params)
        params = {"conv": {"kernel": params["conv"]["kernel"] - 0.1 * moves["conv"]["kernel"]}}
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        p = p - 0.1 * (m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8) + 0.05 * p)
        np.testing.assert_allclose(params["conv"]["kernel"], p, rtol=1e-5)


def test_frozen_stages_do_not_decay():
    kernel = {"kernel": np.ones(1)}
    params = {
        "backbone": {"stem_conv": kernel, "stage2_block0": {"conv1": kernel},
                     "stage3_block0": {"conv1": kernel}},
        "class_head": {"conv0": kernel},
    }  # fmt: skip
    mask = decay_mask(params, True, frozen_stages=2)
    assert not mask["backbone"]["stem_conv"]["kernel"]
    assert not mask["backbone"]["stage2_block0"]["conv1"]["kernel"]
    assert mask["backbone"]["stage3_block0"]["conv1"]["kernel"]
    assert mask["class_head"]["conv0"]["kernel"]


def test_step_schedule_is_the_papers():
    schedule = learning_rate_schedule(default_config())
    rates = {0: 1e-5, 500: 5.005e-3, 1000: 0.01, 59_999: 0.01, 60_001: 0.001, 80_001: 1e-4}
    for step, rate in rates.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-4)


def test_cosine_falls_to_zero_at_the_last_step():
    config = config_with(schedule="cosine", warmup_steps=100)
    config.train.steps = 1100
    schedule = learning_rate_schedule(config)
    np.testing.assert_allclose(schedule(100), 0.01, rtol=1e-6)
    np.testing.assert_allclose(schedule(600), 0.005, rtol=1e-5)
    np.testing.assert_allclose(schedule(1100), 0, atol=1e-9)


def test_plateau_is_constant_after_the_warm_up():
    schedule = learning_rate_schedule(config_with(schedule="plateau", warmup_steps=100))
    np.testing.assert_allclose(schedule(50), 5.005e-3, rtol=1e-4)
    for step in (100, 60_001, 89_999):
        np.testing.assert_allclose(schedule(step), 0.01, rtol=1e-6)


def test_learning_rate_follows_the_batch_unless_told_not_to():
    config = config_with(warmup_steps=0)
    config.train.batch_size = 64
    np.testing.assert_allclose(learning_rate_schedule(config)(0), 0.04)
    config.optimizer.learning_rate_batch = 0
    np.testing.assert_allclose(learning_rate_schedule(config)(0), 0.01)


def test_decay_leaves_norms_alone():
    params = {
        "backbone": {"stem_norm": {"scale": 1, "bias": 1}, "stem_conv": {"kernel": 1}},
        "class_head": {"conv0": {"kernel": 1, "bias": 1}, "norm0": {"scale": 1, "bias": 1}},
    }
    off = {"scale": False, "bias": False}
    expected = {
        "backbone": {"stem_norm": off, "stem_conv": {"kernel": True}},
        "class_head": {"conv0": {"kernel": True, "bias": True}, "norm0": off},
    }
    assert decay_mask(params, decay_biases=True) == expected
    expected["class_head"]["conv0"]["bias"] = False
    assert decay_mask(params, decay_biases=False) == expected
