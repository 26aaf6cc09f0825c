"""Checkpoints: what is kept, what is refused, what a damaged folder does."""

import numpy as np
import pytest

from retina_jax.errors import UserError
from retina_jax.training.checkpoint import Checkpoints, weights_of
from retina_jax.types import TrainState


def state_of(step, size=3):
    return TrainState(
        step=np.array(step, np.int32),
        params={"kernel": np.arange(size, dtype=np.float32) + step},
        batch_stats={"mean": np.full(2, step, np.float32)},
        opt_state=({}, {"trace": np.zeros(size, np.float32)}),
        loss_normalizer=np.float32(100),
    )


def test_the_latest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, precision in ((1, 0.1), (2, 0.6), (3, None), (4, 0.3), (5, None), (6, 0.2)):
        checkpoints.save(state_of(step), precision)
        checkpoints.wait()
    assert checkpoints.latest_step() == 6
    assert checkpoints.best_step() == 2
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {2, 5, 6}
    checkpoints.close()
    reopened = Checkpoints(tmp_path, keep=2)
    restored = reopened.restore(state_of(0), 5)
    assert restored.step == 5
    np.testing.assert_array_equal(restored.params["kernel"], [5, 6, 7])
    reopened.close()
    best = weights_of(str(tmp_path))
    np.testing.assert_array_equal(best["params"]["kernel"], [2, 3, 4])


def test_an_ap_that_comes_later_is_added(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(state_of(step))
        checkpoints.wait()
    assert checkpoints.best_step() is None
    checkpoints.save(state_of(2), 0.5)
    checkpoints.wait()
    assert checkpoints.best_step() == 2
    checkpoints.close()


def test_another_shape_is_refused_by_name(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_of(1))
    checkpoints.wait()
    with pytest.raises(UserError, match=r"params/kernel.*saved \(3,\), configured \(4,\)"):
        checkpoints.restore(state_of(0, size=4), 1)
    checkpoints.close()


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_of(1))
    checkpoints.wait()
    checkpoints.close()
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-1").mkdir()
    reopened = Checkpoints(tmp_path)
    assert reopened.latest_step() == 1
    reopened.close()


def test_a_folder_without_checkpoints_is_no_start(tmp_path):
    with pytest.raises(UserError, match="is not a workdir with checkpoints"):
        weights_of(str(tmp_path))
