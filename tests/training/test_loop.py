"""The loop between steps, with a step, data and checkpoints that cost nothing."""

import io
import json
import types
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from support import events_in

from retina_jax.errors import EvaluationError, NonFiniteLossError, RunError
from retina_jax.progress import Reporter
from retina_jax.training import kept_batch, loop
from retina_jax.training.loop import TrainingLoop
from retina_jax.training.profiled_steps import ProfiledSteps
from retina_jax.training.profiler import Profiler
from retina_jax.training.stop import StopRequest


class Saved:
    """Checkpoints in memory: step to (AP, notes)."""

    def __init__(self):
        self.saved, self.first = {}, {}

    def save(self, state, average_precision=None, notes=None):
        self.saved[state] = average_precision, json.loads(json.dumps(notes))

    def notes(self, step):
        return self.saved[step][1] if step in self.saved else self.first

    def latest_step(self):
        return max(self.saved, default=None)

    def wait(self):
        pass


class Notes(Reporter):
    def __init__(self):
        super().__init__()
        self.lines = []

    def note(self, line, label="note"):
        self.lines.append(line)


class State(int):
    """A state that is only its step."""

    params: ClassVar = {}

    def replace(self, step):
        return State(step)


taken = []
"""The steps that were computed, in their order."""


@pytest.fixture
def make(tiny_config, tmp_path):
    tiny_config.train.steps, tiny_config.train.log_every = 6, 2
    tiny_config.train.checkpoint_every, tiny_config.eval.every = 3, 2
    batch = types.SimpleNamespace(images=np.zeros((1, 2)), cut_away=np.ones(1, int))
    loader = types.SimpleNamespace(
        batches=lambda first, last: iter([batch] * (last - first)),
        image_ids_at=lambda step: [10 * step],
        plan=types.SimpleNamespace(bucket_at=lambda step: 0),
        arrays_at=lambda step: {"image_ids": np.array([10 * step])},
    )
    devices = types.SimpleNamespace(
        shard=lambda b: b,
        replicate=lambda x: x,
        check_equal=lambda state, when: None,
        devices=(),
    )

    def make(evaluate, first_step=0, checkpoints=None, broken=(), **more):
        def step(state, batch):
            taken.append(int(state) + 1)
            values = dict.fromkeys(("loss", "loss_box", "gradient_norm"), float(state))
            return State(state + 1), values | {"finite": int(state) + 1 not in broken}

        taken.clear()
        checkpoints, report = checkpoints or Saved(), Notes()
        training = TrainingLoop(
            tiny_config, tmp_path, devices, evaluate, checkpoints, State, StopRequest(), report,
            **more,
        )  # fmt: skip
        result = training.run(State(first_step), step, loader, first_step)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        return result, checkpoints.saved, report.lines, [json.loads(line) for line in lines]

    return make


SCORES = {"AP": 0.5, "AP50": 0.6}


def test_steps_are_logged_saved_and_evaluated_when_due(make):
    result, saved, notes, log = make(lambda state, step: SCORES)
    assert (result.metrics, result.failed_evaluations, result.stopped) == (SCORES, 0, False)
    assert {step: ap for step, (ap, _) in saved.items()} == {2: 0.5, 3: None, 4: 0.5, 6: 0.5}
    assert [(line["step"], line["loss"]) for line in log] == [(2, 0.5), (4, 2.5), (6, 4.5)]
    assert [line["boxes_cut_away"] for line in log] == [2, 2, 2]
    assert notes == []


@pytest.mark.parametrize("error", [OSError("the disk is gone"), EvaluationError("host b: it fell")])
def test_an_evaluation_that_fails_is_reported_and_the_next_one_tries_again(make, error):
    def evaluate(state, step):
        if step == 4:
            raise error
        return SCORES

    result, saved, notes, log = make(evaluate)
    assert (result.metrics, result.failed_evaluations) == (SCORES, 1)
    assert saved[4][0] is None
    assert len(log) == 3
    (note,) = notes
    assert "the evaluation of step 4 failed" in note
    assert str(error) in note


def test_a_last_evaluation_that_fails_leaves_no_metrics(make):
    def evaluate(state, step):
        raise ValueError("odd")

    result, saved, notes, _ = make(evaluate)
    assert (result.metrics, result.failed_evaluations) == (None, 3)
    assert saved[6][0] is None
    assert len(notes) == 3


@pytest.mark.parametrize("error", [RunError("weights differ"), NonFiniteLossError("nan")])
def test_what_is_wrong_with_the_run_itself_ends_it(make, error):
    def evaluate(state, step):
        raise error

    with pytest.raises(type(error)):
        make(evaluate)


def test_an_evaluation_that_is_stopped_saves_and_ends(make):
    result, saved, _, _ = make(lambda state, step: None)
    assert result.stopped
    assert saved.keys() == {2}


def test_a_run_that_goes_on_between_log_lines_logs_the_same_averages(make, tmp_path):
    _, saved, _, whole = make(lambda state, step: SCORES)
    (tmp_path / "metrics.jsonl").unlink()
    checkpoints = Saved()
    checkpoints.first = saved[3][1]
    _, _, _, log = make(lambda state, step: SCORES, 3, checkpoints)
    rates = ("images_per_second", "input_wait")
    for one, other in zip(log, whole[1:], strict=True):
        assert {k: v for k, v in one.items() if k not in rates} == {
            k: v for k, v in other.items() if k not in rates
        }


def test_a_step_that_is_not_finite_leaves_its_batch(make, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"step 5: .* on images 50"):
        make(lambda state, step: SCORES, broken=[5])
    with np.load(tmp_path / "nonfinite/step_5.npz") as kept:
        assert (kept["step"], *kept["image_ids"]) == (5, 50)


@pytest.mark.parametrize("kind", ["skip", "rollback"])
def test_steps_that_a_run_goes_on_without_leave_their_batches(make, tiny_config, tmp_path, kind):
    tiny_config.train.on_nonfinite = kind
    _, _, notes, _ = make(lambda state, step: SCORES, broken=[4, 5])
    kept = sorted(path.name for path in (tmp_path / "nonfinite").iterdir())
    assert kept == ["step_4.npz", "step_5.npz"]
    commands = [note.split("replay the step with: ")[1] for note in notes if "replay" in note]
    assert [command.rpartition("/")[2] for command in commands] == kept
    assert all(f" replay --workdir={tmp_path} --batch=" in command for command in commands)


def test_a_run_that_goes_on_keeps_only_so_many_batches(make, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_batch, "MOST", 2)
    tiny_config.train.on_nonfinite = "skip"
    make(lambda state, step: SCORES, broken=[2, 4, 5, 6])
    kept = sorted(path.name for path in (tmp_path / "nonfinite").iterdir())
    assert kept == ["step_2.npz", "step_4.npz"]


def test_rollback_goes_on_from_the_last_checkpoint_without_the_step(make, tiny_config):
    tiny_config.train.on_nonfinite = "rollback"
    result, saved, notes, log = make(lambda state, step: SCORES, broken=[4, 5])
    # step 4 fails: back to 3; step 5 fails, which step 6 finds: back to 4
    assert taken == [1, 2, 3, 4, 5, 6, 6]
    assert result.metrics == SCORES
    assert saved[6][1]["left_out"] == [4, 5]
    assert [line["step"] for line in log] == [2, 4, 6]
    assert log[-1]["skipped_steps"] == 2
    assert any(
        "step 4 is not finite; going back to step 3 and leaving out step 4" in x for x in notes
    )


def test_rollback_knows_what_it_left_out_after_a_restart(make, tiny_config):
    tiny_config.train.on_nonfinite = "rollback"
    checkpoints = Saved()
    checkpoints.first = {"left_out": [5], "log_interval": {}}
    make(lambda state, step: SCORES, 3, checkpoints)
    assert taken == [4, 6]


def test_rollback_ends_where_there_is_nothing_to_go_back_to_or_it_does_not_help(make, tiny_config):
    tiny_config.train.on_nonfinite, tiny_config.train.max_skipped = "rollback", 2
    with pytest.raises(NonFiniteLossError, match="no checkpoint has been written yet"):
        make(lambda state, step: SCORES, broken=[1])
    tiny_config.train.steps = 20
    with pytest.raises(NonFiniteLossError):
        make(lambda state, step: SCORES, broken=range(4, 20))


@pytest.fixture
def patient(make, tiny_config, tmp_path):
    """Runs 20 steps with an evaluation every two, whose APs are given, and ``train.patience``."""
    tiny_config.train.steps = 20

    def run(aps, patience, *more):
        tiny_config.train.patience = patience

        def evaluate(state, step):
            ap = aps[step // 2 - 1]
            if isinstance(ap, Exception):
                raise ap
            folder = tmp_path / "eval" / str(step)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.json").write_text(json.dumps({"AP": ap}))
            return {"AP": ap, "AP50": ap}

        return make(evaluate, *more)

    return run


APS = [0.1, 0.3, 0.2, 0.25, 0.3, 0.4, 0.3, 0.3, 0.3, 0.5]


def test_patience_ends_a_run_whose_ap_no_longer_improves(patient):
    result, saved, _, log = patient(APS, 3)
    assert (result.ended_early, taken[-1], max(saved)) == (10, 10, 10)
    assert (result.history.best, result.history.since_best()) == ((4, 0.3), 3)
    assert (result.metrics["AP"], result.stopped, result.failed_evaluations) == (0.3, False, 0)
    assert saved[10][1]["history"]["evaluations"] == [[2 * i + 2, APS[i]] for i in range(5)]
    assert [line["step"] for line in log] == [2, 4, 6, 8, 10]
    assert patient(APS, 0)[0].ended_early is None
    assert patient(APS, 4)[0].ended_early is None, "the last step ends it before"


@pytest.mark.parametrize("odd", [RuntimeError("fell"), None])
def test_an_evaluation_that_failed_or_has_no_ap_does_not_count(patient, odd):
    result, *_ = patient([0.3, odd, odd, 0.2, odd, 0.1, 0.4, 0.1, 0.1, 0.1], 2)
    assert result.ended_early == 12


def test_a_run_that_ended_early_takes_no_step_until_it_may(patient):
    _, saved, _, _ = patient(APS, 3)
    checkpoints = Saved()
    checkpoints.saved = dict(saved)
    result, _, _, log = patient(APS, 3, 10, checkpoints)
    assert (taken, result.ended_early, result.metrics) == ([], 10, None)
    assert checkpoints.saved == saved
    assert [line["step"] for line in log] == [2, 4, 6, 8, 10]
    result, *_ = patient(APS, 2, 10, checkpoints)
    assert (taken, result.ended_early) == ([], 10), "nor with less patience"
    result, saved, _, _ = patient(APS, 4, 10, checkpoints)
    assert (taken[0], result.ended_early) == (11, None)
    assert saved[20] == patient(APS, 0)[1][20], "as if it had never ended"


@pytest.mark.parametrize("first_step", [3, 6, 8, 9])
def test_a_run_that_was_killed_ends_at_the_same_step(patient, first_step):
    """Between two evaluations, or after one; what it wrote later is still there."""
    whole, saved, _, _ = patient(APS, 3)
    checkpoints = Saved()
    checkpoints.saved = {step: kept for step, kept in saved.items() if step <= first_step}
    result, resumed, _, _ = patient(APS, 3, first_step, checkpoints)
    assert (result.ended_early, result.history) == (whole.ended_early, whole.history)
    assert resumed[10] == saved[10]


def test_an_evaluation_that_its_checkpoint_does_not_know_counts(patient):
    """A checkpoint that was alone when its evaluation was made up for is not written again."""
    whole, saved, _, _ = patient(APS, 3)
    checkpoints = Saved()
    checkpoints.saved = {4: (None, saved[3][1])}
    result, *_ = patient(APS, 3, 4, checkpoints)
    assert result.history == whole.history


def test_an_evaluation_because_the_run_ends_decides_nothing_when_it_goes_on(patient, tiny_config):
    tiny_config.train.steps = 5
    _, saved, _, _ = patient(APS, 3)
    checkpoints = Saved()
    checkpoints.saved = dict(saved)
    tiny_config.train.steps = 20
    result, *_ = patient(APS, 3, 5, checkpoints)
    assert (taken[0], result.ended_early) == (6, 10)


def test_a_rollback_goes_on_with_the_history_of_its_checkpoint(patient, tiny_config):
    tiny_config.train.on_nonfinite = "rollback"
    result, saved, _, _ = patient(APS, 3, 0, None, [7])
    assert taken.count(8) == 2
    assert result.ended_early == 10
    assert [step for step, _ in saved[10][1]["history"]["evaluations"]] == [2, 4, 6, 8, 10]


def test_a_loss_far_above_the_recent_ones_is_noted_with_its_images(make, tiny_config):
    tiny_config.train.steps = 120
    _, _, notes, _ = make(lambda state, step: SCORES)
    assert notes == []


def test_tensorboard_gets_the_scores_of_each_evaluation_and_its_pictures(make, tmp_path):
    scores = SCORES | {"per_class": {"disc": 0.25, "ring": None}}
    picture = Image.new("RGB", (4, 3), "red")
    make(lambda state, step: scores, drawn=lambda: [(42, picture)])
    events = events_in(tmp_path / "tensorboard")
    assert events["eval/AP50"] == pytest.approx({2: 0.6, 4: 0.6, 6: 0.6})
    assert events["eval_AP_of_class/disc"] == {2: 0.25, 4: 0.25, 6: 0.25}
    assert events["detections/image_42"].keys() == {2, 4, 6}
    with Image.open(io.BytesIO(events["detections/image_42"][2])) as shown:
        assert (shown.size, shown.format) == ((4, 3), "JPEG")
    assert events["memory/host_gib"][2] > 0.05


def test_a_profile_has_its_steps_and_no_evaluation(make, monkeypatch, tmp_path):
    made = []

    def profiler(folder, steps, report):
        made.append((folder, steps))
        return Profiler(folder, range(0), report)

    monkeypatch.setattr(loop, "Profiler", profiler)
    make(lambda state, step: SCORES, profile=ProfiledSteps(2))
    assert made == [(tmp_path, range(5, 7))]  # the last: the run is too short for ten before
    _, _, notes, _ = make(lambda state, step: SCORES, profile=ProfiledSteps(3))
    assert made[1][1] == range(0)
    assert "no 3 steps in a row without" in notes[0]
