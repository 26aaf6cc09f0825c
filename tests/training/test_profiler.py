"""A recording of the right steps, that ends no run."""

import gzip
import json
import types

import jax
import jax.numpy as jnp
import pytest
from lines import Lines

from retina_jax.files import open_path
from retina_jax.training import profiler
from retina_jax.training.profiler import Profiler


@pytest.fixture
def calls(monkeypatch):
    """What the profiler of JAX is asked for, without it."""
    made = []

    class Annotation:
        def __init__(self, name, step_num):
            self.step = step_num

        def __enter__(self):
            made.append(f"begin {self.step}")

        def __exit__(self, *_):
            made.append(f"end {self.step}")

    stub = types.SimpleNamespace(
        ProfileOptions=types.SimpleNamespace,
        start_trace=lambda folder, **options: made.append("start"),
        stop_trace=lambda: made.append("stop"),
        StepTraceAnnotation=Annotation,
    )
    monkeypatch.setattr(profiler.jax, "profiler", stub)
    return made


def run(folder, steps, report, last=6):
    with Profiler(folder, steps, report) as own:
        for step in range(1, last + 1):
            own.before(step)
            own.after(step, ())
        return own


def test_the_recording_begins_before_its_first_step_and_ends_after_its_last(calls, tmp_path):
    report = Lines()
    own = run(tmp_path, range(3, 5), report)
    assert calls == ["start", "begin 3", "end 3", "begin 4", "end 4", "stop"]
    assert own.is_over
    (line,) = report.lines
    assert line.startswith(
        f"profile of steps 3 to 4 written to {tmp_path}/profile; open it with tensorboar"
    )
    assert f"tensorboard --logdir={tmp_path} (pip" in line


def test_a_run_that_ends_within_keeps_what_it_has(calls, tmp_path):
    report = Lines()
    run(tmp_path, range(3, 9), report, last=4)
    assert calls[-2:] == ["end 4", "stop"]
    assert report.lines[0].startswith("profile of steps 3 to 4 written to ")


def test_an_error_within_a_step_ends_the_recording(calls, tmp_path):
    report = Lines()
    own = Profiler(tmp_path, range(3, 9), report)
    own.before(3)
    own.__exit__(ValueError, ValueError("odd"), None)
    assert calls == ["start", "begin 3", "end 3", "stop"]
    assert report.lines[0].startswith("profile of step 3 written to ")


def test_without_steps_nothing_happens(calls, tmp_path):
    report = Lines()
    assert not run(tmp_path, range(0), report).is_over
    assert calls == report.lines == []


@pytest.mark.parametrize("what", ["start_trace", "stop_trace"])
def test_a_profiler_that_fails_ends_no_run(calls, tmp_path, monkeypatch, what):
    def fail(*_, **__):
        raise RuntimeError("CUPTI: insufficient privileges")

    monkeypatch.setattr(profiler.jax.profiler, what, fail)
    report = Lines()
    assert run(tmp_path, range(3, 5), report).is_over
    (line,) = report.lines
    assert line == (
        "the profile could not be recorded (CUPTI: insufficient privileges); training continues"
    )


def test_other_processes_record_nothing(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(profiler.parallel, "is_main", lambda: False)
    run(tmp_path, range(3, 5), Lines())
    assert calls == []


def test_a_recording_in_a_bucket_is_uploaded(calls, bucket, monkeypatch):
    def start(folder, **_):
        (folder / "plugins").mkdir()
        (folder / "plugins/host.xplane.pb").write_text("x")

    monkeypatch.setattr(profiler.jax.profiler, "start_trace", start)
    report = Lines()
    run(open_path("gs://bucket/runs/a", "--workdir"), range(3, 5), report)
    assert bucket.names() == ["runs/a/profile/plugins/host.xplane.pb"]
    assert "open it with tensorboard --logdir=gs://bucket/runs/a (" in report.lines[0]


def test_tensorboard_and_perfetto_find_the_steps(tmp_path):
    step = jax.jit(lambda x: jnp.sin(x) + 1)
    x = step(jnp.zeros(8))
    with Profiler(tmp_path, range(3, 5), Lines()) as own:
        for number in range(1, 7):
            own.before(number)
            x = step(x)
            own.after(number, x)
    (recording,) = (tmp_path / "profile/plugins/profile").iterdir()
    assert len(list(recording.glob("*.xplane.pb"))) == 1
    with gzip.open(recording / "perfetto_trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    steps = {e["args"]["step_num"] for e in events if e.get("name") == "train"}
    assert steps == {"3", "4"}
