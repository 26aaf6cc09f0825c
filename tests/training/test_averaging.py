"""The average of the weights: by hand, bit for bit over a restart, and where a run is scored."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
import small_network
from rich.console import Console
from test_step import batch_of

from retina_jax import parallel
from retina_jax.evaluation import coco, evaluator
from retina_jax.jobs import evaluate, train
from retina_jax.parallel import Devices, fetch
from retina_jax.training import averaging
from retina_jax.training.checkpoint import Checkpoints, weights_of
from retina_jax.training.optimizer import build_optimizer, learning_rate_schedule
from retina_jax.training.step import init_state, make_train_step, state_shapes

pytestmark = pytest.mark.usefixtures("small_model")


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
    two = parallel.Devices.local(2)
    monkeypatch.setattr(parallel.Devices, "local", lambda count=None: two)


@pytest.fixture
def config(tiny_config):
    tiny_config.model.norm = "batch"
    tiny_config.optimizer.schedule = "step"  # a cosine of two steps is another schedule
    tiny_config.optimizer.learning_rate = 1e-4
    tiny_config.train.ema = 0.5
    tiny_config.eval.pictures = 0
    return tiny_config


def equal(some, other):
    assert jax.tree.structure(some) == jax.tree.structure(other)
    return all(map(np.array_equal, jax.tree.leaves(some), jax.tree.leaves(other)))


def state_of(config, workdir, step):
    """The whole state of a checkpoint."""
    model, optimizer = small_network.build(config, 5), build_optimizer(config)
    checkpoints = Checkpoints(workdir)
    state = checkpoints.restore(state_shapes(model, optimizer, config), step)
    checkpoints.close()
    return state


def test_updates_by_hand():
    averaged = averaging.start({"w": np.float32([1, 7])}, {"mean": np.float32([10])})
    step = jax.jit(averaging.update, static_argnums=4)
    # the first step's decay is 2 / 11: 9 / 11 of the way from 1 to 12
    averaged = step(averaged, {"w": np.float32([12, 7])}, {"mean": np.float32([21])}, 0, 0.9998)
    np.testing.assert_allclose(averaged["params"]["w"], [1 + 9, 7], rtol=1e-6)
    np.testing.assert_allclose(averaged["batch_stats"]["mean"], [10 + 9], rtol=1e-6)
    # step 90 has 100 / 101 still, and 1e6 has 0.9998
    for number, decay in ((89, 91 / 100), (10**6, 0.9998)):
        new = step(averaged, {"w": np.float32([-990, 7])}, {"mean": np.float32([19])}, number,
                   0.9998)  # fmt: skip
        np.testing.assert_allclose(new["params"]["w"][0], 10 - (1 - decay) * 1000, rtol=1e-5)
        assert new["params"]["w"][1] == 7, "what is frozen keeps its bits"
    assert averaging.update(None, {}, {}, 0, 0.0) is None


def test_a_step_averages_what_it_wrote_and_a_skipped_one_nothing(config):
    devices = Devices.local()
    model, optimizer = small_network.build(config, 5, parallel.AXIS), build_optimizer(config)
    step = devices.train_step(
        make_train_step(model, optimizer, learning_rate_schedule(config), config)
    )
    first = fetch(init_state(model, optimizer, config))
    assert equal(first.averaged, {"params": first.params, "batch_stats": first.batch_stats})
    state, _ = step(devices.replicate(first), devices.shard(batch_of(0)))
    after = fetch(state)
    assert not equal(after.params, first.params)
    assert not equal(after.batch_stats, first.batch_stats)
    for part in ("params", "batch_stats"):
        old, new = getattr(first, part), getattr(after, part)
        expected = jax.tree.map(lambda a, b: a + np.float32(9 / 11) * (b - a), old, new)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            after.averaged[part], expected,
        )  # fmt: skip
    bad = batch_of(1)
    bad.ground_truth.boxes[1] = np.nan
    bad = bad.replace(images=np.full(bad.images.shape, np.nan, np.float32))
    state, metrics = step(state, devices.shard(bad))
    assert not fetch(metrics)["finite"]
    assert equal(fetch(state).averaged, after.averaged)


def test_two_steps_a_restart_and_two_more_equal_four_bit_for_bit(config, tmp_path, quiet):
    config.train.accumulate = 2
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert train.run(config, str(whole), quiet) == 0
    config.train.steps = 2
    assert train.run(config, str(halves), quiet) == 0
    config.train.steps = 4
    assert train.run(config, str(halves), quiet) == 0
    state = state_of(config, whole, 4)
    assert equal(state, state_of(config, halves, 4))
    assert not equal(state.averaged["params"], state.params)
    assert not equal(state.averaged["batch_stats"], state.batch_stats)
    assert equal(weights_of(whole), state.averaged)
    logs = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, halves)
    ]
    assert len(logs[0]) == 4
    assert logs[0] == logs[1]


@pytest.fixture
def evaluated(monkeypatch):
    """The variables of each evaluation."""
    seen = []

    def run(self, variables, step, target, advance, stops):
        seen.append(fetch(variables))
        metrics = {"step": step, "images": 10, "per_class": {}} | dict.fromkeys(coco.METRICS, 0.5)
        target.mkdir(parents=True, exist_ok=True)
        (target / "metrics.json").write_text(json.dumps(metrics))
        return metrics

    monkeypatch.setattr(evaluator.Evaluator, "run", run)
    return seen


def test_an_average_begins_with_the_checkpoint_and_ends_with_the_field(config, tmp_path, evaluated):
    printed = io.StringIO()
    console = Console(file=printed, soft_wrap=True, highlight=False)
    without, begun, ended = tmp_path / "without", tmp_path / "begun", tmp_path / "ended"
    config.train.ema, config.train.steps = 0.0, 2
    assert train.run(config, str(without), console) == 0
    before = state_of(config, without, 2)
    assert before.averaged is None
    assert equal(evaluated.pop(), {"params": before.params, "batch_stats": before.batch_stats})
    assert "of the weights" not in printed.getvalue()

    shutil.copytree(without, begun)
    config.train.ema, config.train.steps = 0.5, 3
    assert train.run(config, str(begun), console) == 0
    assert "the checkpoint has no averaged weights; the average starts" in printed.getvalue()
    after = state_of(config, begun, 3)
    expected = jax.tree.map(lambda a, b: a + np.float32(9 / 13) * (b - a),
                            before.params, after.params)  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
                 after.averaged["params"], expected)  # fmt: skip
    assert equal(evaluated.pop(), after.averaged)
    assert evaluate.run(config, str(begun), console) == 0
    assert equal(evaluated.pop(), after.averaged)
    assert "averaged weights" in printed.getvalue()

    shutil.copytree(begun, ended)
    config.train.ema, config.train.steps = 0.0, 4
    assert train.run(config, str(ended), console) == 0
    assert "averaged weights in the checkpoint are dropped" in printed.getvalue()
    last = state_of(config, ended, 4)
    assert equal(weights_of(ended), {"params": last.params, "batch_stats": last.batch_stats})


def test_other_weights_start_the_average_anew(config):
    model, optimizer = small_network.build(config, 5), build_optimizer(config)
    state = init_state(model, optimizer, config)
    weights = jax.tree.map(lambda x: np.asarray(x) + 1, averaging.variables_of(state))
    assert equal(averaging.with_weights(state, weights).averaged, weights)
    none = averaging.with_weights(state.replace(averaged=None), weights)
    assert none.averaged is None
    assert equal(averaging.variables_of(none), weights)
