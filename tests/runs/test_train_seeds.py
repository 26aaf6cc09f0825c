"""Several seeds as one program: workdirs of single runs, whatever happens meanwhile."""

import json
import shutil

import jax
import numpy as np
import pytest

from retina_jax import parallel
from retina_jax.config.values import to_json
from retina_jax.errors import NON_FINITE, UserError
from retina_jax.main import main
from retina_jax.progress import Reporter
from retina_jax.runs import train as train_module
from retina_jax.runs.train import train
from retina_jax.runs.train_seeds import check_config, config_of, train_seeds
from retina_jax.training.checkpoint import Checkpoints, restore_chosen
from retina_jax.training.stop import StopRequest
from retina_jax.training.workdir import read_config

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


class Lines(Reporter):
    """Keeps what is said."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, line):
        self.lines.append(line)

    def note(self, line, label="note"):
        self.lines.append(line)


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

    # once more: nothing is left to do; with a third seed, the first two are kept
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


@pytest.mark.parametrize("limit", [2**40, 1], ids=["together", "one_by_one"])
def test_a_seed_that_diverges_does_not_stop_the_others(
    config, tmp_path, monkeypatch, broken_seed_1, limit, capsys
):
    """As the command; with too little memory, the seeds are trained one after the other."""
    monkeypatch.setattr(parallel.Devices, "memory_limit", lambda self: limit)
    experiment = tmp_path / "own.py"
    config.train.steps = 2
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
    assert (tmp_path / "run/seed0/eval/2/metrics.json").exists()
    diverged = json.loads((tmp_path / "run/seed1/diverged.json").read_text())
    assert diverged["step"] == 1
    assert diverged["message"].startswith("stopped: step 1: loss nan")
    assert main(command) == NON_FINITE, "it is not tried again"
    assert "seed 1: diverged (stopped: step 1: loss nan" in capsys.readouterr().err


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
