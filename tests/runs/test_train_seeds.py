"""Several seeds as one program: workdirs of single runs, whatever happens meanwhile."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest
from lines import Lines

from retina_jax import parallel
from retina_jax.config.values import to_json
from retina_jax.errors import LEFT_OUT, NON_FINITE, UserError
from retina_jax.evaluation.evaluator import Evaluator
from retina_jax.main import main
from retina_jax.progress import Reporter
from retina_jax.runs import train as train_module
from retina_jax.runs import train_seeds as train_seeds_module
from retina_jax.runs.train import begin, train
from retina_jax.runs.train_seeds import check_config, config_of, train_seeds
from retina_jax.training.checkpoint import Checkpoints, restore_chosen
from retina_jax.training.lease import Lease
from retina_jax.training.stop import StopRequest
from retina_jax.training.workdir import read_config, read_fitted

pytestmark = pytest.mark.usefixtures("small_model", "two_devices")


@pytest.fixture
def two_devices(monkeypatch):
    """Two devices with plenty of memory."""
    two = parallel.Devices.local(2)
    monkeypatch.setattr(parallel.Devices, "local", lambda: two)
    monkeypatch.setattr(parallel.Devices, "memory_limit", lambda self: 2**40)


@pytest.fixture
def config(tiny_config):
    tiny_config.optimizer.learning_rate = 0.01
    tiny_config.eval.pictures = 0
    return tiny_config


@pytest.fixture
def broken_seed_1(monkeypatch):
    """Seed 1 begins with weights that are not numbers."""
    own = train_module.init_state

    def init_state(model, optimizer, config):
        state = own(model, optimizer, config)
        factor = np.nan if config.seed == 1 else 1.0
        return state.replace(params=jax.tree.map(lambda x: x * factor, state.params))

    monkeypatch.setattr(train_module, "init_state", init_state)


def log_of(folder):
    """What a run logged, but for rates."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("images_per_second", "input_wait")
    return [{name: v for name, v in line.items() if name not in timed} for line in lines]


def weights(folder, step=4):
    return restore_chosen(folder, step)[1]


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_each_workdir_is_that_of_a_single_run(config, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(train_module, "draw_curves", drawn.append)  # takes a second
    report = Lines()
    result = train_seeds(config, tmp_path / "all", 2, report)
    assert "seeds 0, 1 as one program" in report.lines
    assert [each.seed for each in result.seeds] == [0, 1]
    own = tmp_path / "all/seed1"
    alone = tmp_path / "alone"
    assert train(config_of(config, 1), alone).metrics
    assert read_config(own) == read_config(alone)
    assert read_config(own).data.seed == 0
    assert Checkpoints(own).steps() == Checkpoints(alone).steps()
    np.testing.assert_equal(
        [line["step"] for line in log_of(own)], [line["step"] for line in log_of(alone)]
    )
    for one, other in zip(log_of(own), log_of(alone), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_allclose(value, other[name], rtol=1e-4, atol=1e-6, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        weights(own), weights(alone),
    )  # fmt: skip
    for name in ("detections.json", "metrics.json"):
        assert (own / "eval/4" / name).exists()
    assert drawn == [tmp_path / "all/seed0", own, alone]

    # once more: nothing is left to do
    report = Lines()
    again = train_seeds(config, tmp_path / "all", 2, report)
    assert [x.metrics for x in again.seeds] == [x.metrics for x in result.seeds]
    assert report.lines == []

    # after a stop, and after a kill that left the last checkpoint of one seed unwritten
    ask = StopRequest.before
    with monkeypatch.context() as patch:
        patch.setattr(
            StopRequest, "before", lambda self, point: point >= (4, 0) or ask(self, point)
        )
        train_seeds(config, tmp_path / "stopped", 2)
    stopped = [tmp_path / f"stopped/seed{seed}" for seed in (0, 1)]
    assert [Checkpoints(folder).steps() for folder in stopped] == [[2, 3]] * 2
    shutil.rmtree(stopped[1] / "checkpoints/3")
    report = Lines()
    train_seeds(config, tmp_path / "stopped", 2, report)
    assert "resuming from step 2 of 4" in report.lines
    for seed, folder in enumerate(stopped):
        assert_equal(weights(folder), weights(tmp_path / f"all/seed{seed}"))
        assert log_of(folder) == log_of(tmp_path / f"all/seed{seed}")


@pytest.mark.parametrize(
    ("steps", "groups"),
    [
        ([[], [], []], [[0, 1, 2]]),
        ([[10, 20], [10, 20]], [[0, 1]]),
        ([[20, 30], [10, 20]], [[0, 1]]),  # a kill while step 30 was written
        ([[10], []], [[0], [1]]),  # so with the first one; or the memory is too small for both
        ([[20, 30], [20, 30], []], [[0, 1], [2]]),  # a new seed
        ([[30, 40], [10, 20], [30, 40]], [[0, 2], [1]]),
        ([[0, 40], [0]], [[0], [1]]),  # seed 0 went on alone
    ],
)
def test_no_seed_loses_more_work_than_by_a_kill(config, tmp_path, monkeypatch, steps, groups):
    config.train.steps, config.train.checkpoint_every = 50, 10
    trained, notes = [], Lines()

    def train_together(config, folders, chosen, *others):
        trained.append(chosen)
        return None, []

    def train_alone(config, folder, seed, *others):
        trained.append([seed])

    monkeypatch.setattr(train_seeds_module, "_train_together", train_together)
    monkeypatch.setattr(train_seeds_module, "_train_alone", train_alone)
    for seed, own in enumerate(steps):
        for step in own:
            (tmp_path / f"seed{seed}/checkpoints/{step}").mkdir(parents=True)
    train_seeds(config, tmp_path, len(steps), notes)
    assert trained == groups
    assert any("not all seeds are at the same step" in n for n in notes.lines) == (len(groups) > 1)


def test_an_evaluation_whose_checkpoint_a_kill_prevented_is_no_end(config, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(
        train_seeds_module, "_train_alone", lambda config, folder, seed, *_: trained.append(seed)
    )
    for seed, last in enumerate((3, config.train.steps)):
        (tmp_path / f"seed{seed}/checkpoints/{last}").mkdir(parents=True)
        evaluated = tmp_path / f"seed{seed}/eval/{config.train.steps}"
        evaluated.mkdir(parents=True)
        (evaluated / "metrics.json").write_text("{}")
    train_seeds(config, tmp_path, 2)
    assert trained == [0]


def test_checkpoints_that_another_program_may_be_writing_are_not_dropped(config, tmp_path):
    for seed, steps in enumerate(((2, 3), (2,))):
        for step in steps:
            (tmp_path / f"seed{seed}/checkpoints/{step}").mkdir(parents=True)
    with Lease(tmp_path / "seed0", Reporter()), pytest.raises(UserError, match="in use"):
        train_seeds(config, tmp_path, 2)
    assert (tmp_path / "seed0/checkpoints/3").exists()


@pytest.fixture
def failed_evaluation(monkeypatch):
    """The evaluation of step 1 fails."""
    own = Evaluator.run

    def run(self, variables, step, *others):
        if step == 1:
            raise OSError("the disk is gone")
        return own(self, variables, step, *others)

    monkeypatch.setattr(Evaluator, "run", run)


@pytest.mark.parametrize("limit", [2**40, 1], ids=["together", "one_by_one"])
def test_a_seed_that_diverges_does_not_stop_the_others(
    config, tmp_path, monkeypatch, broken_seed_1, failed_evaluation, limit, capsys
):
    """As the command; with too little memory, the seeds are trained one after the other."""
    monkeypatch.setattr(parallel.Devices, "memory_limit", lambda self: limit)
    experiment = tmp_path / "own.py"
    config.train.steps, config.eval.every = 2, 1
    fields = json.dumps(to_json(config, {}))
    experiment.write_text(
        "import json\n\nfrom retina_jax.config.values import from_json\n\n\n"
        f"def get_config():\n    return from_json(json.loads({fields!r}))\n"
    )
    command = ["retina-jax", "train", f"--config={experiment}", f"--workdir={tmp_path}/run",
               "--seeds=2"]  # fmt: skip
    assert main(command) == NON_FINITE
    said = capsys.readouterr().err
    assert ("training the seeds one after the other" in said) == (limit == 1)
    assert "seed 1: step 1: loss nan" in said
    assert "failed evaluations: 1, see above" in said
    assert (tmp_path / "run/seed0/eval/2/metrics.json").exists()
    diverged = json.loads((tmp_path / "run/seed1/diverged.json").read_text())
    assert diverged["step"] == 1
    assert diverged["message"].startswith("stopped: step 1: loss nan")
    assert main(command) == NON_FINITE, "it is not tried again"
    assert "seed 1: diverged (stopped: step 1: loss nan" in capsys.readouterr().err


def test_each_run_fits_its_own_config(shapes_dir, tmp_path, monkeypatch, capsys):
    """And stores what was fitted, for commands that take its workdir and the experiment."""
    begun = []

    def train_together(config, folders, *_):
        with contextlib.ExitStack() as held:
            run = begin(config_of(config, 1), folders[1], held, Reporter(), False, False)
        begun.append(run)
        return None, []

    monkeypatch.setattr(train_seeds_module, "_train_together", train_together)
    monkeypatch.setattr(train_module, "initial_state", lambda *_: None)
    monkeypatch.setattr(train_module, "_introduce", lambda *_: None)
    command = ["retina-jax", "train", "--config=experiments/shapes.py", f"--workdir={tmp_path}/run",
               f"--config.data.dir={shapes_dir}", "--seeds=2", "--config.data.fit=True",
               "--config.train.batch_size=4", "--config.eval.batch_size=4"]  # fmt: skip
    assert main(command) == LEFT_OUT, "nothing was trained"
    fitted = read_fitted(tmp_path / "run/seed1")
    assert fitted["anchors.ratios"] == begun[0].config.anchors.ratios


@pytest.mark.parametrize(
    ("field", "value"),
    [("train.patience", 2), ("optimizer.schedule", "plateau"), ("train.on_nonfinite", "rollback"),
     ("train.keep_checkpoints", 1)],
)  # fmt: skip
def test_what_would_part_the_seeds_is_refused(config, field, value):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=rf"config\.{field}={value}.*; set --config\.{field}="):
        check_config(config)


def test_flags_that_contradict_each_other_are_one_line(tmp_path, capsys, monkeypatch):
    command = ["retina-jax", "train", "--config=experiments/shapes.py", f"--workdir={tmp_path}"]
    for flags, message in (
        (["--seeds=1"], "--seeds=1: 1 is not integer >= 2"),
        (["--seeds=2", "--profile=10"], "--profile=10 records one run; remove --seeds or"),
        (["--seeds=2", "--num-processes=2"], "train --seeds runs in one process"),
    ):
        assert main([*command, *flags]) == 2
        assert message in capsys.readouterr().err
