"""Numbers of a run: means between log steps, steps that were skipped, and the log on disk."""

import json

import numpy as np
import pytest

from retina_jax.errors import NonFiniteLossError
from retina_jax.training import metrics as numbers
from retina_jax.training.metrics import Meter, MetricsLog


def ids_at(number):
    return {5: [71, 73]}.get(number, [70, 71])


def step(loss, finite=True):
    return {
        "loss": np.float32(loss),
        "gradient_norm": np.float32(1),
        "finite": np.bool_(finite),
    }


def test_a_reading_is_the_mean_since_the_last_one():
    meter = Meter(ids_at)
    for number, loss in enumerate((1.0, 2.0, 6.0), 1):
        meter.add(number, number, step(loss))
        meter.time(images=8, seconds=0.5, input_wait=0.1)
    meter.settle("stop", None)
    values = meter.read()
    assert values == {
        "loss": pytest.approx(3),
        "gradient_norm": 1,
        "images_per_second": pytest.approx(24 / 1.5),
        "input_wait": pytest.approx(0.3 / 1.5),
        "boxes_cut_away": 6,
    }
    meter.add(4, 0, step(5.0))
    meter.time(8, 2.0, 0.0)
    meter.settle("stop", None)
    values = meter.read()
    assert values["loss"] == 5
    assert values["images_per_second"] == 4
    assert values["input_wait"] == 0
    assert "boxes_cut_away" not in values


def test_compilation_counts_only_where_a_log_step_has_nothing_else():
    meter = Meter(ids_at)
    meter.time_compilation(8, 16.0)
    meter.add(1, 0, step(1.0))
    meter.settle("stop", None)
    assert meter.read()["images_per_second"] == 0.5
    meter.time(8, 1.0, 0.0)
    assert meter.read()["images_per_second"] == 8


def test_a_loss_that_is_not_finite_names_step_images_and_checkpoint():
    meter = Meter(ids_at)
    meter.add(4, 0, step(1.0))
    meter.add(5, 0, step(np.nan, finite=False))
    with pytest.raises(NonFiniteLossError) as caught:
        meter.settle("stop", 2)
    message = str(caught.value)
    assert message.startswith("step 5: loss nan, gradient norm 1.0 on images 71, 73; the last good")
    assert "checkpoint is at step 2" in message
    assert "--config.train.on_nonfinite=skip" in message
    meter = Meter(ids_at)
    meter.add(1, 0, step(np.inf, finite=False))
    with pytest.raises(NonFiniteLossError, match="no checkpoint has been written yet"):
        meter.settle("stop", None)


def test_skipped_steps_are_counted_over_the_run_and_left_out_of_means():
    meter = Meter(ids_at)
    for number, loss in enumerate((1.0, np.nan, 3.0), 1):
        meter.add(number, 0, step(loss, np.isfinite(loss)))
    meter.time(8, 1.0, 0.0)
    meter.settle("skip", None)
    values = meter.read()
    assert (values["loss"], values["skipped_steps"]) == (2, 1)
    meter.add(4, 0, step(np.nan, False))
    meter.time(8, 1.0, 0.0)
    meter.settle("skip", None)
    values = meter.read()
    assert values["loss"] is None, "there is no mean where all were skipped"
    assert values["skipped_steps"] == 2


def test_steps_skipped_in_a_row_end_the_run_at_the_limit():
    meter = Meter(ids_at, max_skipped=3)
    for number, loss in enumerate((np.nan, np.nan, 1.0, np.nan), 1):
        meter.add(number, 0, step(loss, np.isfinite(loss)))
    meter.settle("skip", 2)
    meter.add(5, 0, step(np.nan, False))
    meter.settle("skip", 2)
    meter.add(6, 0, step(np.inf, False))
    meter.add(7, 0, step(1.0))
    with pytest.raises(NonFiniteLossError) as caught:
        meter.settle("skip", 2)
    message = str(caught.value)
    assert message.startswith("step 6: loss inf, gradient norm 1.0 on images 70, 71; 3 steps in a")
    assert "row were skipped (config.train.max_skipped); the last good checkpoint is at" in message
    assert "raise --config.train.max_skipped" in message
    assert "on_nonfinite" not in message
    unlimited = Meter(ids_at)
    for number in range(1, 50):
        unlimited.add(number, 0, step(np.nan, False))
    unlimited.settle("skip", None)
    assert unlimited.skipped == 49


def test_two_steps_stay_under_way(monkeypatch):
    waited = []
    monkeypatch.setattr(numbers.jax, "block_until_ready", lambda m: waited.append(m["loss"]))
    meter = Meter(ids_at)
    for number in range(1, 6):
        meter.add(number, 0, step(number))
        assert waited == list(range(1, number - 1))


def logged(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_the_log_has_a_line_a_step_with_nothing_for_what_was_skipped(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write(1, {"loss": 0.5})
    log.write(2, {"loss": None})
    log.close()
    assert logged(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize(
    "rest", ["", '{"step": 5, "lo', '{"step": 5, "loss": 1}\n{"st', "\x00\x00"]
)
def test_a_resumed_log_keeps_whole_lines_up_to_its_checkpoint(tmp_path, rest):
    lines = [json.dumps({"step": s, "loss": s / 8}) for s in (1, 2, 3, 4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n" + rest)
    log = MetricsLog(tmp_path, 3)
    assert [entry["step"] for entry in logged(tmp_path)] == [1, 2, 3]
    log.write(4, {"loss": 9.0})
    log.close()
    assert logged(tmp_path)[-2:] == [{"step": 3, "loss": 0.375}, {"step": 4, "loss": 9.0}]


def test_a_run_from_its_beginning_keeps_nothing_of_an_older_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    MetricsLog(tmp_path, 0).close()
    assert logged(tmp_path) == []


def test_numbers_by_level_have_a_name_each():
    values = numbers.by_name(
        step(1.0) | {"by_level": np.arange(15, dtype=np.float32).reshape(3, 5)}
    )
    assert (values["loss"], values["finite"]) == (1, 1)
    assert [values[f"loss_classification_P{level}"] for level in range(3, 8)] == [0, 1, 2, 3, 4]
    assert (values["loss_box_P3"], values["foreground_anchors_P7"]) == (5, 14)
    rows = {"by_level": np.arange(25, dtype=np.float32).reshape(5, 5)}
    extra = {f"loss_{name}": np.float32(7) for name in ("other", "centerness")}  # rows are sorted
    values = numbers.by_name(step(1.0) | extra | rows)
    assert (values["loss_centerness_P3"], values["loss_other_P7"]) == (15, 24)
    assert (values["loss_centerness"], values["foreground_anchors_P3"]) == (7, 10)


def test_an_interval_that_an_earlier_version_began_has_no_numbers_by_level():
    begun = {"read": [{"loss": 1.0, "gradient_norm": 1.0}]}
    more = {"by_level": np.ones((3, 5)), "foreground_anchors": np.float32(12)}
    meter = Meter(ids_at, interval=begun, batch_size=8)
    meter.add(2, 0, step(3.0) | more)
    meter.settle("stop", None)
    values = meter.read()
    assert (values["loss"], values["loss_box_P4"], values["foreground_per_image"]) == (2, 1, 1.5)
    meter = Meter(ids_at, interval=begun, batch_size=8)
    meter.add(2, 0, step(np.nan, False) | more)
    meter.settle("skip", None)
    values = meter.read()
    assert (values["loss"], values["loss_box_P4"]) == (1, None)
    assert "foreground_per_image" not in values
