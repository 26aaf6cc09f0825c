"""The training loop: steps, and logging, checkpoints and evaluations between them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from PIL import Image

from retina_jax import parallel
from retina_jax.config import resolve
from retina_jax.data.loader import TrainLoader
from retina_jax.errors import CommandError, EvaluationError, NonFiniteLossError
from retina_jax.progress import Reporter
from retina_jax.training import kept_batch
from retina_jax.training.checkpoint import Checkpoints
from retina_jax.training.error_log import record_error
from retina_jax.training.history import HISTORY_NOTE, History
from retina_jax.training.memory import memory_in_use
from retina_jax.training.metrics import Meter, MetricsLog, weight_norm
from retina_jax.training.optimizer import decayed_factor
from retina_jax.training.profiled_steps import ProfiledSteps
from retina_jax.training.profiler import Profiler
from retina_jax.training.stop import StopRequest
from retina_jax.training.watchdog import Watchdog
from retina_jax.types import TrainState
from retina_jax.wording import counted

Evaluate = Callable[[TrainState, int], dict[str, Any] | None]
"""Maps ``(state, step)`` to COCO metrics; None after a stop request."""
Drawn = list[tuple[int, Image.Image]]
"""Image ids, and images with drawn detections."""
_INTERVAL = "log_interval"
"""Note of a checkpoint: the steps since the last line of the log."""
_LEFT_OUT = "left_out"
"""Note of a checkpoint: steps that ``train.on_nonfinite=rollback`` leaves out."""
_MOST_CLASSES = 100
"""With more classes, TensorBoard gets no curves by class."""


@dataclasses.dataclass
class LoopResult:
    """How a run of the loop ended."""

    metrics: dict[str, Any] | None = None
    """Of the last evaluation; None if there was none, or it failed or was stopped."""
    failed_evaluations: int = 0
    stopped: bool = False
    """A signal ended it; the state is saved."""
    ended_early: int | None = None
    """The step at which ``train.patience`` ended it."""
    history: History = dataclasses.field(default_factory=History)


class TrainingLoop:
    """Runs the training steps, and logs, saves and evaluates when due."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        folder: Path,
        devices: parallel.Devices,
        evaluate: Evaluate,
        checkpoints: Checkpoints,
        restore: Callable[[int], TrainState],
        stop: StopRequest,
        report: Reporter,
        profile: ProfiledSteps | None = None,
        drawn: Callable[[], Drawn] = list,
    ):
        """Stores its arguments; `run` starts the loop.

        Args:
          restore: returns the replicated state of the checkpoint of a step.
          profile: steps to record.
          drawn: returns the drawn images of the last evaluation.
        """
        self._config = config
        self._folder = folder
        self._devices = devices
        self._evaluate_state = evaluate
        self._checkpoints = checkpoints
        self._restore = restore
        self._stop = stop
        self._report = report
        self._profile = profile
        self._drawn = drawn
        self.result = LoopResult()
        self._left_out: set[int] = set()

    def run(
        self, state: TrainState, step_fn: Callable, loader: TrainLoader, first_step: int
    ) -> LoopResult:
        """Trains from ``first_step`` to ``train.steps``, or until a stop request.

        Raises `NonFiniteLossError`, unless ``train.on_nonfinite`` says otherwise.
        """
        self.result = LoopResult()
        self._shapes: set[tuple[int, ...]] = set()
        self._left_out = set(self._notes(first_step).get(_LEFT_OUT, []))
        while True:
            try:
                self._run(state, step_fn, loader, first_step)
                return self.result
            except NonFiniteLossError as error:
                state = None  # its memory is needed
                if self._config.train.on_nonfinite != "rollback":
                    raise
                first_step = self._roll_back(error)
                state = self._restore(first_step)

    def _run(
        self, state: TrainState, step_fn: Callable, loader: TrainLoader, first_step: int
    ) -> None:
        with MetricsLog(self._folder, first_step) as log:
            self._steps(state, step_fn, loader, first_step, log)
        self._checkpoints.wait()

    def _steps(
        self,
        state: TrainState,
        step_fn: Callable,
        loader: TrainLoader,
        first_step: int,
        log: MetricsLog,
    ) -> None:
        config, stop, steps = self._config.train, self._stop, self._config.train.steps
        result, meter = self.result, self.meter_at(first_step, loader)
        state = self.evaluate_if_missed(state, first_step, log, meter)
        self._end_early_if_due(first_step)
        batches = parallel.prefetch(
            loader.batches(first_step, steps),
            lambda b: (int(b.cut_away.sum()), self._devices.shard(b)),
        )
        with (
            contextlib.closing(batches),
            self._report.progress("training", steps, first_step) as bar,
            Watchdog(config.watchdog) as watchdog,
            self._profiler(loader, first_step) as profiler,
        ):
            bar.advance("compiling …", by=0)
            done = first_step
            while done < steps and not result.stopped and result.ended_early is None:
                if stop.before((done + 1, 0)):
                    result.stopped = True
                    break
                profiler.before(done + 1)
                started = time.perf_counter()
                cut_away, batch = next(batches)
                waited = time.perf_counter() - started
                done += 1
                if done in self._left_out:
                    number = self._devices.replicate(np.asarray(done, np.int32))
                    state = state.replace(step=number)
                    meter.skipped += 1
                else:
                    first = not self._shapes
                    with contextlib.ExitStack() as compiling:
                        if batch.images.shape not in self._shapes:  # a bucket's first compiles
                            self._shapes.add(batch.images.shape)
                            compiling.enter_context(watchdog.paused())
                        state, step_metrics = step_fn(state, batch)
                        if first:
                            jax.block_until_ready(step_metrics)
                            if parallel.is_main():
                                weight_norm(state.params)  # compiles
                            stop.nothing_to_save(False)
                    meter.add(done, cut_away, step_metrics)
                    seconds = time.perf_counter() - started
                    if first:
                        meter.time_compilation(config.batch_size, seconds)
                        self._report.say(f"first step after {seconds:.1f} s, including compilation")
                    else:
                        meter.time(config.batch_size, seconds, waited)
                with watchdog.paused():  # it may write what it recorded
                    profiler.after(done, state)
                if profiler.is_over:
                    self._profile = None
                watchdog.progress(f"step {done}")
                log_due = done % config.log_every == 0 or done == steps
                save_due = done % config.checkpoint_every == 0 or done == steps
                if log_due or save_due or self.evaluation_due(done):
                    before = time.perf_counter()
                    self.settle(meter, loader)
                    meter.time(0, time.perf_counter() - before, 0.0)
                note = None
                if log_due:
                    values = meter.read()
                    if parallel.is_main():
                        values["weight_norm"] = weight_norm(state.params)
                        log.write(done, values)
                        log.scalars("memory", done, memory_in_use(self._devices.devices))
                    note = _note(values)
                bar.advance(note)
                if self.evaluation_due(done):
                    with watchdog.paused():  # it compiles; a host that is lost is noticed
                        state = self.evaluate(state, done, log, meter)
                    self._end_early_if_due(done)
                elif save_due:
                    self.save(state, meter)
        if result.stopped:
            self.settle(meter, loader)  # reports a non-finite step before saving
            self.save(state, meter)

    def meter_at(self, step: int, loader: TrainLoader) -> Meter:
        """The meter, and `LoopResult.history`, as the checkpoint of a step stores them."""
        config, notes = self._config.train, self._notes(step)
        self.result.history = History.from_json(notes.get(HISTORY_NOTE))
        return Meter(
            loader.image_ids_at, config.max_skipped, notes.get(_INTERVAL), config.batch_size
        )

    def evaluate_if_missed(
        self, state: TrainState, step: int, log: MetricsLog, meter: Meter
    ) -> TrainState:
        """Makes up for the evaluation of the step from which a run resumes, if it was interrupted.

        Returns the state, whose learning rate may have decayed.
        """
        if not step or not self.evaluation_due(step):
            return state
        evaluated, average_precision = self._recorded(step)
        if evaluated:  # the checkpoint may be older than its evaluation
            return self._judge(state, step, average_precision)
        self._stop.nothing_to_save(False)
        state = self.evaluate(state, step, log, meter)
        self._checkpoints.wait()
        self._stop.nothing_to_save(True)
        return state

    def _profiler(self, loader: TrainLoader, first_step: int) -> Profiler:
        """The profiler for the steps of ``--profile``; without that flag, it does nothing."""
        steps, note = range(0), ""
        if self._profile:
            buckets = resolve(self._config).buckets
            steps, note = self._profile.place(
                first_step,
                self._config.train.steps,
                lambda step: buckets[loader.plan.bucket_at(step - 1)],
                self.evaluation_due,
                {shape[-3:-1] for shape in self._shapes},
            )
        if note:
            self._report.note(note)
        if not steps:
            self._profile = None
        return Profiler(self._folder, steps, self._report)

    def settle(self, meter: Meter, loader: TrainLoader) -> None:
        """`Meter.settle`; reports spikes, and stores the batches of non-finite steps."""
        try:
            meter.settle(self._config.train.on_nonfinite, self._checkpoints.latest_step())
        finally:
            always = self._config.train.on_nonfinite == "stop"
            for step in meter.not_finite if parallel.is_main() else ():
                line = kept_batch.keep(self._folder, step, loader, always)
                if line:
                    self._report.note(line)
            meter.not_finite.clear()
        for line in meter.spikes:
            self._report.note(line)
        meter.spikes.clear()

    def _roll_back(self, error: NonFiniteLossError) -> int:
        """The step of the checkpoint to continue from; leaves out the step of ``error``."""
        self._checkpoints.wait()
        latest = self._checkpoints.latest_step()
        limit, in_a_row = self._config.train.max_skipped, 1
        while error.step - in_a_row in self._left_out:
            in_a_row += 1
        if latest is None or 0 < limit <= in_a_row:
            raise error
        self._left_out.add(error.step)
        self._report.note(
            f"the loss or gradient of step {error.step} is not finite; going back to step {latest} "
            f"and leaving out step {error.step}"
        )
        return latest

    def evaluation_due(self, step: int) -> bool:
        return step == self._config.train.steps or self._counts(step)

    def _counts(self, step: int) -> bool:
        """Whether the evaluation of a step counts for early ends and decays.

        One that is due only because the run ends there does not: a run that is extended decides
        like one that was longer from the start.
        """
        every = self._config.eval.every
        return every > 0 and step % every == 0

    def _notes(self, step: int) -> dict[str, Any]:
        """The notes of the checkpoint of a step; none before the first step."""
        return self._checkpoints.notes(step) if step else {}

    def _recorded(self, step: int) -> tuple[bool, float | None]:
        """Whether the evaluation of a step is on disk, and its AP: as the first process sees it."""
        path, content = self._folder / "eval" / str(step) / "metrics.json", None
        if parallel.is_main() and path.exists():
            content = {"AP": json.loads(path.read_text()).get("AP")}
        content = json.loads(parallel.group.tell("evaluated", json.dumps(content)))
        return content is not None, (content or {}).get("AP")

    def _judge(self, state: TrainState, step: int, average_precision: float | None) -> TrainState:
        """Adds an evaluation to the history; the state, with a lower learning rate if that is due.

        Does nothing without an AP, or if the history has the evaluation.
        """
        optimizer, before = self._config.optimizer, self.result.history
        if average_precision is None or not self._counts(step):
            return state
        history = before.evaluated(step, float(average_precision))
        decays = history != before and optimizer.schedule == "plateau"
        if decays and history.decay_due(optimizer.plateau_patience):
            history = history.decayed(step)
            old = parallel.fetch(state.rate_factor)
            new = decayed_factor(old, self._config)
            state = state.replace(rate_factor=self._devices.replicate(new))
            peak = resolve(self._config).learning_rate
            evaluations = counted(optimizer.plateau_patience, "evaluation")
            self._report.say(
                f"step {step}: AP has not improved for {evaluations}; learning rate "
                f"{peak * float(old):.3g} to {peak * float(new):.3g}"
            )
        self.result.history = history
        return state

    def _end_early_if_due(self, step: int) -> None:
        train = self._config.train
        if step < train.steps and self.result.history.ends(train.patience):
            self.result.ended_early = step

    def save(self, state: TrainState, meter: Meter, average_precision: float | None = None) -> None:
        """Starts to write a checkpoint, with what a resumed run needs to go on as if undisturbed.

        All steps must have been settled.
        """
        notes = {
            _INTERVAL: meter.open_interval(),
            _LEFT_OUT: sorted(self._left_out),
            HISTORY_NOTE: self.result.history.to_json(),
        }
        self._checkpoints.save(state, average_precision, notes)

    def evaluate(self, state: TrainState, step: int, log: MetricsLog, meter: Meter) -> TrainState:
        """Evaluates and saves. A failed evaluation is reported, and the next one tries again.

        Returns the state, whose learning rate may have decayed.
        """
        self.result.metrics = None
        try:
            self._devices.check_equal(state, f"step {step}")
            metrics = self._evaluate_state(state, step)
        except Exception as error:
            if isinstance(error, CommandError) and not isinstance(error, EvaluationError):
                raise
            reason = str(error)
            if not isinstance(error, CommandError):
                reason = repr(error)
                self._report.say(traceback.format_exc())
            self._report.note(
                f"the evaluation of step {step} failed ({reason}); the next evaluation tries again"
            )
            if parallel.is_main():
                record_error(self._folder, f"the evaluation of step {step} failed ({reason})")
            self.result.failed_evaluations += 1
            self.save(state, meter)
            return state
        if metrics is None:
            self.result.stopped = True
            self.save(state, meter)
            return state
        shown = ("–" if metrics[n] is None else f"{metrics[n]:.3f}" for n in ("AP", "AP50"))
        self._report.say("step {}: AP {}, AP50 {}".format(step, *shown))
        state = self._judge(state, step, metrics["AP"])
        self.save(state, meter, metrics["AP"])  # AP is None without ground truth
        scores = {name: value for name, value in metrics.items() if isinstance(value, float)}
        log.scalars("eval", step, scores)
        by_class = metrics.get("per_class", {})
        if len(by_class) <= _MOST_CLASSES:
            log.scalars("eval_AP_of_class", step, by_class)
        log.pictures(step, self._drawn())
        self.result.metrics = metrics
        return state


def _note(values: dict[str, float]) -> str:
    loss = "skipped" if values["loss"] is None else f"{values['loss']:.3f}"
    return f"loss {loss}, {values['images_per_second']:.1f} images/s"
