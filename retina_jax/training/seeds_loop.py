"""The training loop of several seeds as one program (`training.seeds`).

Each seed has a workdir like that of a single run, with a checkpoint at the same steps; so the
program can resume from the newest step that all of them have, and each can go on alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import optax

from retina_jax import parallel
from retina_jax.data.loader import TrainLoader
from retina_jax.errors import NonFiniteLossError
from retina_jax.files import write_json
from retina_jax.progress import Reporter
from retina_jax.training.checkpoint import Checkpoints
from retina_jax.training.error_log import record_error
from retina_jax.training.loop import TrainingLoop
from retina_jax.training.memory import memory_in_use
from retina_jax.training.metrics import Meter, MetricsLog
from retina_jax.training.seeds import unstack
from retina_jax.training.stop import StopRequest
from retina_jax.training.watchdog import Watchdog
from retina_jax.types import TrainState

DIVERGED = "diverged.json"
"""File in the workdir of a seed that a non-finite loss has stopped: the step and the message."""


@dataclasses.dataclass
class SeedRun:
    """What one seed has of its own."""

    seed: int
    folder: Path
    loop: TrainingLoop
    """Settles, saves and evaluates; takes no steps itself."""
    checkpoints: Checkpoints
    report: Reporter
    diverged: NonFiniteLossError | None = None

    def give_up(self, error: NonFiniteLossError) -> None:
        """Marks the seed as diverged, so that the others go on, also after a restart."""
        self.diverged = error
        self.report.note(str(error))
        record_error(self.folder, str(error))
        mark_diverged(self.folder, error)


def mark_diverged(folder: Path, error: NonFiniteLossError) -> None:
    """Writes `DIVERGED` to the workdir of a seed."""
    write_json(folder / DIVERGED, {"step": error.step, "message": f"{error.prefix}: {error}"})


class SeedsLoop:
    """Takes steps of all seeds at once; logs, saves and evaluates each like a run of its own."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        runs: list[SeedRun],
        devices: parallel.Devices,
        stop: StopRequest,
        report: Reporter,
    ):
        """``config``: of any of the runs, which differ in their seed alone."""
        self._config = config
        self._runs = runs
        self._devices = devices
        self._stop = stop
        self._report = report

    def run(
        self, states: TrainState, step_fn: Callable, loader: TrainLoader, first_step: int
    ) -> bool:
        """Trains the stacked ``states`` to ``train.steps``; False if a stop request ended it.

        Each run's `TrainingLoop.result` and `SeedRun.diverged` tell how it ended.
        """
        with contextlib.ExitStack() as open_logs:
            logs = [open_logs.enter_context(MetricsLog(r.folder, first_step)) for r in self._runs]
            finished = self._steps(states, step_fn, loader, first_step, logs)
        for run in self._runs:
            run.checkpoints.wait()
        return finished

    def _steps(
        self,
        states: TrainState,
        step_fn: Callable,
        loader: TrainLoader,
        first_step: int,
        logs: list[MetricsLog],
    ) -> bool:
        config, stop = self._config.train, self._stop
        meters = [run.loop.meter_at(first_step, loader) for run in self._runs]
        pending: list[tuple[int, int, Any]] = []
        if first_step:
            self._for_each(states, lambda run, state, i: run.loop.evaluate_if_missed(
                state, first_step, logs[i], meters[i]))  # fmt: skip
        stopped = self._evaluation_stopped()
        batches = parallel.prefetch(
            loader.batches(first_step, config.steps),
            lambda b: (int(b.cut_away.sum()), self._devices.shard(b)),
        )
        shapes: set[tuple[int, ...]] = set()
        with (
            contextlib.closing(batches),
            self._report.progress("training", config.steps, first_step) as bar,
            Watchdog(config.watchdog) as watchdog,
        ):
            bar.advance("compiling …", by=0)
            for done in range(first_step + 1, config.steps + 1):
                stopped = stopped or stop.before((done, 0))
                if stopped or not self._running:
                    break
                started = time.perf_counter()
                cut_away, batch = next(batches)
                waited = time.perf_counter() - started
                first = not shapes
                with contextlib.ExitStack() as compiling:
                    if batch.images.shape not in shapes:  # the first batch of a bucket compiles
                        shapes.add(batch.images.shape)
                        compiling.enter_context(watchdog.paused())
                    states, metrics = step_fn(states, batch)
                    if first:
                        jax.block_until_ready(metrics)
                        stop.nothing_to_save(False)
                pending.append((done, cut_away, metrics))
                if len(pending) > 2:  # as in `Meter.add`
                    jax.block_until_ready(pending[-3][2])
                seconds = time.perf_counter() - started
                self._time(meters, seconds, waited, first)
                if first:
                    self._report.say(f"first step after {seconds:.1f} s, including compilation")
                watchdog.progress(f"step {done}")
                log_due = done % config.log_every == 0 or done == config.steps
                save_due = done % config.checkpoint_every == 0 or done == config.steps
                evaluation_due = self._runs[0].loop.evaluation_due(done)
                if log_due or save_due or evaluation_due:
                    before = time.perf_counter()
                    self._settle(pending, meters, loader)
                    for meter in meters:
                        meter.time(0, time.perf_counter() - before, 0.0)
                note = None
                if log_due:
                    note = self._log(done, states, meters, logs)
                bar.advance(note)
                with watchdog.paused():
                    if evaluation_due:
                        self._for_each(states, lambda run, state, i, step=done: run.loop.evaluate(
                            state, step, logs[i], meters[i]))  # fmt: skip
                    elif save_due:
                        self._save(states, meters)
                stopped = self._evaluation_stopped()
        if stopped and self._running:
            self._settle(pending, meters, loader)
            self._save(states, meters)
        return not stopped

    @property
    def _running(self) -> list[SeedRun]:
        return [run for run in self._runs if run.diverged is None]

    def _evaluation_stopped(self) -> bool:
        """Whether a stop request interrupted an evaluation."""
        return any(run.loop.result.stopped for run in self._runs)

    def _time(self, meters: list[Meter], seconds: float, waited: float, first: bool) -> None:
        """Every seed sees each batch, so its images per second are those of the batches."""
        for meter in meters:
            if first:
                meter.time_compilation(self._config.train.batch_size, seconds)
            else:
                meter.time(self._config.train.batch_size, seconds, waited)

    def _settle(
        self, pending: list[tuple[int, int, Any]], meters: list[Meter], loader: TrainLoader
    ) -> None:
        """Gives every meter its seed's metrics; a seed with a non-finite loss has diverged."""
        fetched = [(step, cut_away, parallel.fetch(metrics)) for step, cut_away, metrics in pending]
        pending.clear()
        for i, (run, meter) in enumerate(zip(self._runs, meters, strict=True)):
            if run.diverged is not None:
                continue
            for step, cut_away, metrics in fetched:
                meter.add(step, cut_away, {name: value[i] for name, value in metrics.items()})
            try:
                run.loop.settle(meter, loader)
            except NonFiniteLossError as error:
                run.give_up(error)

    def _log(
        self, step: int, states: TrainState, meters: list[Meter], logs: list[MetricsLog]
    ) -> str | None:
        """Writes a line for each seed; returns a note for the progress bar."""
        norms = _weight_norms(jax.tree.map(lambda x: x.addressable_shards[0].data, states.params))
        memory = memory_in_use(self._devices.devices)
        losses, rate = [], 0.0
        for run, meter, log, norm in zip(self._runs, meters, logs, norms, strict=True):
            if run.diverged is not None:
                losses.append("diverged")
                continue
            values = meter.read()
            values["weight_norm"] = float(norm)
            log.write(step, values)
            log.scalars("memory", step, memory)
            losses.append("skipped" if values["loss"] is None else f"{values['loss']:.3f}")
            rate = values["images_per_second"]
        return f"loss {', '.join(losses)}, {rate:.1f} images/s for each seed"

    def _for_each(self, states: TrainState, act: Callable[[SeedRun, TrainState, int], Any]) -> None:
        """Calls ``act`` with each running seed, its replicated state, and its position.

        Once a stop request has interrupted one, the others are only saved.
        """
        host = parallel.fetch(states)
        self._wait()
        for i, run in enumerate(self._runs):
            if run.diverged is None:
                act(run, self._devices.replicate(unstack(host, i)), i)

    def _save(self, states: TrainState, meters: list[Meter]) -> None:
        host = parallel.fetch(states)
        self._wait()
        for i, (run, meter) in enumerate(zip(self._runs, meters, strict=True)):
            if run.diverged is None:
                run.loop.save(unstack(host, i), meter)

    def _wait(self) -> None:
        """Completes the last checkpoint of all seeds, so that they always have one in common."""
        for run in self._runs:
            run.checkpoints.wait()


_weight_norms = jax.jit(jax.vmap(optax.tree.norm))
