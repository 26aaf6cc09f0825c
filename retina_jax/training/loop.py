"""The training loop: steps, and logging, checkpoints and evaluations between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections

from retina_jax import parallel
from retina_jax.data.loader import TrainLoader
from retina_jax.errors import RunError
from retina_jax.progress import Reporter
from retina_jax.training.checkpoint import Checkpoints
from retina_jax.training.metrics import Meter, MetricsLog
from retina_jax.training.stop import StopRequest
from retina_jax.types import TrainState

Evaluate = Callable[[TrainState, int], dict[str, Any] | None]
"""``(state, step)`` to COCO metrics; None after a stop request."""


class TrainingLoop:
    """Runs the training steps, and logs, saves and evaluates when due."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        folder: Path,
        devices: parallel.Devices,
        evaluate: Evaluate,
        checkpoints: Checkpoints,
        stop: StopRequest,
        report: Reporter,
    ):
        self._config = config
        self._folder = folder
        self._devices = devices
        self._evaluate_state = evaluate
        self._checkpoints = checkpoints
        self._stop = stop
        self._report = report

    def run(
        self, state: TrainState, step_fn: Callable, loader: TrainLoader, first_step: int
    ) -> dict[str, Any] | None:
        """Trains from ``first_step``; returns the last metrics, None if stopped before them."""
        config, stop, steps = self._config.train, self._stop, self._config.train.steps
        log = MetricsLog(self._folder, first_step)
        meter = Meter(loader.split.image_ids, config.max_skipped)
        metrics = None
        evaluated = (self._folder / "eval" / str(first_step) / "metrics.json").exists()
        if first_step and self._evaluation_due(first_step) and not evaluated:  # it was interrupted
            metrics = self._evaluate(state, first_step, log)
        batches = parallel.prefetch(
            loader.batches(first_step, steps),
            lambda b: (b.index, int(b.cut_away.sum()), self._devices.shard(b)),
        )
        compiled = False
        with self._report.progress("training", steps, first_step) as bar:
            bar.advance("compiling …", by=0)
            done = first_step
            while done < steps and not stop:
                started = time.perf_counter()
                try:
                    rows, cut_away, batch = next(batches)
                except (RuntimeError, RunError):
                    if stop:  # the signal also ended the workers
                        break
                    raise
                waited = time.perf_counter() - started
                state, step_metrics = step_fn(state, batch)
                done += 1
                meter.add(done, rows, cut_away, step_metrics)
                if compiled:
                    elapsed = time.perf_counter() - started
                    meter.time(config.batch_size, elapsed, waited)
                else:  # the first step includes compilation
                    jax.block_until_ready(step_metrics)
                    meter.time_compilation(config.batch_size, time.perf_counter() - started)
                    compiled = True
                log_due = done % config.log_every == 0 or done == steps
                save_due = done % config.checkpoint_every == 0 or done == steps or stop
                if log_due or save_due or self._evaluation_due(done):
                    before = time.perf_counter()
                    meter.settle(config.on_nonfinite, self._checkpoints.latest_step())
                    meter.time(0, time.perf_counter() - before, 0.0)
                note = None
                if log_due:
                    values = meter.read()
                    log.write(done, values)
                    note = _note(values)
                bar.advance(note)
                if self._evaluation_due(done) and not stop:
                    metrics = self._evaluate(state, done, log)
                elif save_due:
                    self._checkpoints.save(state)
        if stop:
            # report a non-finite step before saving
            meter.settle(config.on_nonfinite, self._checkpoints.latest_step())
            self._checkpoints.save(state)
        log.close()
        self._checkpoints.wait()
        return metrics

    def _evaluation_due(self, step: int) -> bool:
        every, steps = self._config.eval.every, self._config.train.steps
        return step == steps or (every > 0 and step % every == 0)

    def _evaluate(self, state: TrainState, step: int, log: MetricsLog) -> dict[str, Any] | None:
        metrics = self._evaluate_state(state, step)
        if metrics is None:
            self._checkpoints.save(state)
            return None
        self._checkpoints.save(state, metrics["AP"])  # AP is None without ground truth
        scores = {name: value for name, value in metrics.items() if isinstance(value, float)}
        log.scalars("eval", step, scores)
        shown = ("–" if metrics[n] is None else f"{metrics[n]:.3f}" for n in ("AP", "AP50"))
        self._report.say("step {}: AP {}, AP50 {}".format(step, *shown))
        return metrics


def _note(values: dict[str, float]) -> str:
    loss = "skipped" if values["loss"] is None else f"{values['loss']:.3f}"
    return f"loss {loss} {values['images_per_second']:.1f} images/s"
