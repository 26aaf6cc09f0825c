"""Checkpoints: what is kept, what is refused, what a damaged folder does."""

import itertools

import flax.struct
import jax
import numpy as np
import optax
import pytest

from retina_jax.config import default_config
from retina_jax.errors import UserError
from retina_jax.training.checkpoint import Checkpoints, weights_of
from retina_jax.training.optimizer import build_optimizer
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
    with pytest.raises(UserError, match=r"^--workdir=.* has no checkpoint; train it first"):
        weights_of(str(tmp_path))


@pytest.mark.parametrize("clips_now", [0.0, 10.0])
@pytest.mark.parametrize("clipped_then", [False, True])
def test_checkpoints_of_earlier_versions_restore_with_and_without_clipping(
    tmp_path, clipped_then, clips_now
):
    """Their optimiser had a part more where gradients were clipped."""
    rng = np.random.default_rng(0)
    params = {"backbone": {"kernel": rng.normal(size=(2, 3)).astype(np.float32)}}
    trace = {"backbone": {"kernel": rng.normal(size=(2, 3)).astype(np.float32)}}
    parts = [optax.add_decayed_weights(1e-4), optax.trace(0.9)]
    if clipped_then:
        parts.insert(0, optax.clip_by_global_norm(1.0))
    opt_state = optax.chain(*parts).init(params)
    opt_state = (*opt_state[:-1], opt_state[-1]._replace(trace=trace))
    state = TrainState(
        step=np.int32(5), params=params, batch_stats={}, opt_state=opt_state,
        loss_normalizer=np.float32(7),
    )  # fmt: skip
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state)
    checkpoints.wait()
    config = default_config()
    config.optimizer.clip_norm = clips_now
    template = state.replace(opt_state=build_optimizer(config).init(params))
    restored = checkpoints.restore(template, 5)
    checkpoints.close()
    np.testing.assert_array_equal(
        restored.opt_state[-1].trace["backbone"]["kernel"], trace["backbone"]["kernel"]
    )
    assert jax.tree.structure(restored) == jax.tree.structure(template)
    assert int(restored.step) == 5


def test_the_optimizers_tree_does_not_change_with_a_field():
    params = {"backbone": {"kernel": np.zeros((2, 2), np.float32)}}
    for name in ("sgd", "adamw"):
        trees = set()
        for clip_norm, weight_decay, schedule in itertools.product(
            (0.0, 10.0), (0.0, 1e-4), ("step", "cosine")
        ):
            config = default_config()
            config.optimizer.update(
                {"name": name, "clip_norm": clip_norm, "weight_decay": weight_decay,
                 "schedule": schedule}
            )  # fmt: skip
            state = build_optimizer(config).init(params)
            leaves = jax.tree_util.tree_leaves_with_path(state)
            trees.add(tuple(jax.tree_util.keystr(path) for path, _ in leaves))
        assert len(trees) == 1


def test_an_average_of_the_weights_begins_with_them_and_is_left_out_without_one(tmp_path):
    plain = state_of(1)
    averaged = {"params": {"kernel": np.float32([7, 8, 9])}, "batch_stats": {"mean": np.ones(2)}}
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(plain)
    checkpoints.save(state_of(2).replace(averaged=averaged))
    checkpoints.wait()
    assert [checkpoints.has_average(step) for step in (1, 2)] == [False, True]
    with_average = state_of(0).replace(averaged=averaged)
    begun = checkpoints.restore(with_average, 1)
    np.testing.assert_array_equal(begun.averaged["params"]["kernel"], plain.params["kernel"])
    assert begun.averaged["params"]["kernel"] is not begun.params["kernel"], "a step donates both"
    dropped = checkpoints.restore(state_of(0), 2)
    assert dropped.averaged is None
    np.testing.assert_array_equal(dropped.params["kernel"], [2, 3, 4])
    np.testing.assert_array_equal(
        checkpoints.restore(with_average, 2).averaged["params"]["kernel"], [7, 8, 9]
    )
    np.testing.assert_array_equal(checkpoints.restore_weights(1)["params"]["kernel"], [1, 2, 3])
    np.testing.assert_array_equal(checkpoints.restore_weights(2)["params"]["kernel"], [7, 8, 9])
    wrong = state_of(0, size=4).replace(averaged=averaged)
    with pytest.raises(UserError, match=r"params/kernel.*saved \(3,\), configured \(4,\)"):
        checkpoints.restore(wrong, 1)
    checkpoints.close()


@flax.struct.dataclass
class EarlierState:
    """The state of earlier versions, which kept no average."""

    step: np.ndarray
    params: dict
    batch_stats: dict
    opt_state: tuple
    loss_normalizer: np.ndarray


def test_checkpoints_of_versions_without_averages_restore(tmp_path):
    state = state_of(3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(
        EarlierState(
            state.step, state.params, state.batch_stats, state.opt_state, state.loss_normalizer
        )
    )
    checkpoints.wait()
    assert not checkpoints.has_average(3)
    restored = checkpoints.restore(state_of(0), 3)
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
