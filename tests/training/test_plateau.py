"""Runs whose evaluations have given APs: the learning rate decays, training ends, and goes on."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
import small_network
from rich.console import Console

from retina_jax import parallel
from retina_jax.data.data_set import open_split
from retina_jax.data.loader import TrainLoader
from retina_jax.errors import UserError
from retina_jax.evaluation import coco, evaluator
from retina_jax.jobs import status, train
from retina_jax.prepare.shapes import open_data_set
from retina_jax.progress import Reporter
from retina_jax.runs.replay import replay
from retina_jax.runs.status import status_of
from retina_jax.training import kept_batch
from retina_jax.training.checkpoint import Checkpoints
from retina_jax.training.history import HISTORY_NOTE
from retina_jax.training.optimizer import build_optimizer
from retina_jax.training.step import state_shapes

pytestmark = pytest.mark.usefixtures("small_model")
APS = [0.2, 0.3, 0.1, 0.2, 0.25, 0.3, 0.1, 0.2]


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
    two = parallel.Devices.local(2)
    monkeypatch.setattr(parallel.Devices, "local", lambda count=None: two)


@pytest.fixture(autouse=True)
def evaluations(monkeypatch):
    """The steps that were evaluated; their APs are `APS`."""
    steps = []

    def run(self, variables, step, target, advance, stops):
        steps.append(step)
        scores = dict.fromkeys(coco.METRICS, APS[step - 1])
        metrics = {"step": step, "images": 10, "per_class": {}} | scores
        target.mkdir(parents=True, exist_ok=True)
        (target / "metrics.json").write_text(json.dumps(metrics))
        return metrics

    monkeypatch.setattr(evaluator.Evaluator, "run", run)
    return steps


@pytest.fixture
def config(tiny_config):
    tiny_config.optimizer.update(
        {"schedule": "plateau", "decay_factor": 0.5, "learning_rate": 1e-3, "plateau_patience": 2,
         "learning_rate_batch": 0}
    )  # fmt: skip
    tiny_config.train.update({"steps": 8, "checkpoint_every": 3, "keep_checkpoints": 9})
    tiny_config.eval.every, tiny_config.eval.pictures = 1, 0
    return tiny_config


def trained(config, workdir):
    """The exit code of the command, and what it printed."""
    printed = io.StringIO()
    code = train.run(config, str(workdir), Console(file=printed, soft_wrap=True, highlight=False))
    return code, printed.getvalue()


def end_of(config, workdir, step=None):
    """The last checkpoint of a run: its whole state, its notes; and the log, without rates."""
    model, optimizer = small_network.build(config, 5), build_optimizer(config)
    checkpoints = Checkpoints(workdir)
    step = step or checkpoints.latest_step()
    state = checkpoints.restore(state_shapes(model, optimizer, config), step)
    notes = checkpoints.notes(step)
    checkpoints.close()
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    rates = ("images_per_second", "input_wait")
    return state, notes, [{k: v for k, v in x.items() if k not in rates} for x in lines]


def assert_same_end(config, one, other):
    (state, *facts), (other_state, *other_facts) = end_of(config, one), end_of(config, other)
    jax.tree.map(np.testing.assert_array_equal, state, other_state)
    assert facts == other_facts


def assert_replayed(config, workdir, logged):
    """Step 7 by steps 2 to 6, between which the learning rate decayed twice."""
    before = end_of(config, workdir, 6)[0]
    for step in range(2, 8):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    directory = open_data_set(config.data.dir, config.data.name)
    split = open_split(directory, config.data.train_split, config.data.labels)
    kept_batch.keep(workdir, 7, TrainLoader(split, config), always=True)
    found = replay(config, workdir, workdir / "nonfinite/step_7.npz", 9, Reporter())
    jax.tree.map(np.testing.assert_array_equal, found.state, before)
    assert found.metrics["learning_rate"] == logged["learning_rate"]
    assert found.metrics["loss"] == pytest.approx(logged["loss"], rel=1e-6)


def test_a_run_decays_ends_early_goes_on_and_is_one_that_never_ended(
    config, tmp_path, evaluations, capsys
):
    whole, early = tmp_path / "whole", tmp_path / "early"
    code, printed = trained(config, whole)
    assert code == 0
    assert "step 4: AP has not improved for 2 evaluations; learning rate 0.001 to 0.0005" in printed
    assert "step 6: AP has not improved for 2 evaluations; learning rate 0.0005 to 0.0" in printed
    state, notes, log = end_of(config, whole)
    assert state.rate_factor == np.float32(0.125)
    assert notes[HISTORY_NOTE]["decays"] == [4, 6, 8]
    rates = [line["learning_rate"] for line in log]
    np.testing.assert_allclose(rates, [1e-3] * 4 + [5e-4] * 2 + [2.5e-4] * 2, rtol=1e-6)
    assert status_of(whole).state == "finished"
    assert_replayed(config, shutil.copytree(whole, tmp_path / "replayed"), log[6])

    evaluations.clear()
    config.train.patience, config.train.keep_checkpoints = 3, 1
    ended = (
        "stopped early at step 5 of 8: no better AP in 3 evaluations since step 2 (0.300); the "
        "best checkpoint is step 2\nto continue, run the same command with "
        "--config.train.patience=0, or with 4 or more\nCOCO metrics on 10 images, step 2\n"
    )
    for _ in range(2):  # the same command trains no further, and shows the results again
        code, printed = trained(config, early)
        assert code == 0
        assert ended in printed
        assert evaluations == [1, 2, 3, 4, 5]
        assert sorted(p.name for p in (early / "checkpoints").iterdir()) == ["2", "5"]
    assert status_of(early).state == "stopped early, no better AP since step 2"
    assert status.main([str(early)]) == 0
    assert "step 5 of 8 (62%)" in capsys.readouterr().out

    shutil.copytree(early, tmp_path / "killed")
    config.train.patience = 0
    code, printed = trained(config, early)
    assert code == 0
    assert "resuming from step 5 of 8" in printed
    assert_same_end(config, early, whole)
    assert status_of(early).state == "finished"

    # its newest checkpoint is lost, and with it what was decided at step 5
    shutil.rmtree(tmp_path / "killed/checkpoints/5")
    evaluations.clear()
    code, printed = trained(config, tmp_path / "killed")
    assert (code, evaluations) == (0, [3, 4, 5, 6, 7, 8])
    assert_same_end(config, tmp_path / "killed", whole)

    shutil.rmtree(early / "eval/6")  # of equal checkpoints, the latest is the best
    config.train.steps, config.train.patience = 9, 3
    with pytest.raises(UserError, match=r"eval/6/metrics\.json is missing; run the evaluate"):
        trained(config, early)


def test_another_schedule_takes_up_the_weights_of_a_plateau_and_back(config, tmp_path):
    config.train.steps = 4
    trained(config, tmp_path)
    assert end_of(config, tmp_path)[0].rate_factor == np.float32(0.5)
    config.optimizer.schedule, config.train.steps = "step", 5
    assert trained(config, tmp_path)[0] == 0
    state, _, log = end_of(config, tmp_path)
    assert state.rate_factor is None
    assert log[-1]["learning_rate"] == pytest.approx(1e-3)
    config.optimizer.schedule, config.train.steps = "plateau", 6
    assert trained(config, tmp_path)[0] == 0
    assert end_of(config, tmp_path)[2][-1]["learning_rate"] == pytest.approx(1e-3)
