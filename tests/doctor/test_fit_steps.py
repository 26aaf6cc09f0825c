"""The length of a run by the number of images, and what follows from it."""

import pytest

from retina_jax.config import default_config
from retina_jax.doctor.fit import FITTED
from retina_jax.doctor.fit_steps import fit_schedule, fit_steps


@pytest.mark.parametrize(
    ("images", "batch_size", "steps"),
    # 70 · √200 = 990; 70 · √5000 = 4950; twice the batch: 2475
    [(200, 8, 1000), (5000, 8, 4950), (5000, 16, 2450), (3, 8, 300)],
)
def test_steps_by_hand(images, batch_size, steps):
    assert fit_steps(images, batch_size) == steps


def test_the_schedule_follows_the_steps():
    config = default_config()
    config.train.steps = 1800
    assert fit_schedule(config, frozenset(FITTED)) == {
        "eval.every": 180,
        "train.checkpoint_every": 180,
        "optimizer.warmup_steps": 180,
        "optimizer.decay_at": (1200, 1600),
    }
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    assert fit_schedule(config, {"optimizer.decay_at", "optimizer.warmup_steps"}) == {
        "optimizer.warmup_steps": 100
    }
    config.train.steps = 4
    assert fit_schedule(config, {"eval.every"}) == {"eval.every": 50}
