"""Train: one loop that can be read from top to bottom. The same command resumes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from rich.console import Console
from rich.markup import escape

from retina_jax import parallel, visualize
from retina_jax.checkpoint import Checkpoints, read_source
from retina_jax.config import notices
from retina_jax.data.loader import TrainLoader
from retina_jax.data.sources import Split, open_data_set, open_split
from retina_jax.doctor.examine import short_form
from retina_jax.errors import RunError, UserError
from retina_jax.evaluation.loop import Evaluator
from retina_jax.evaluation.report import print_table
from retina_jax.interop.fit import fit
from retina_jax.interop.graft import MisfitError, graft
from retina_jax.metrics import MetricsLog, ProgressBar
from retina_jax.models import retinanet
from retina_jax.optimizer import build_optimizer, learning_rate_schedule
from retina_jax.train_step import init_state, make_train_step
from retina_jax.types import TrainState
from retina_jax.workdir import StopRequest, open_workdir, write_config


class Meter:
    """Metrics of the steps since the last log, fetched from the device only when they are read."""

    def __init__(self, split: Split):
        self._split = split
        self._pending: list[tuple[int, np.ndarray, dict[str, jax.Array]]] = []
        self._read: list[dict[str, float]] = []
        self._images = self._cut_away = 0
        self._seconds = self._input_wait = 0.0
        self._compiling = (0, 0.0)
        self._names: tuple[str, ...] = ()
        self.skipped = 0

    def add(
        self, step: int, rows: np.ndarray, cut_away: int, metrics: dict[str, jax.Array]
    ) -> None:
        """A step that was begun, on ``rows``, of whose boxes ``cut_away`` were left out."""
        self._pending.append((step, rows, metrics))
        self._cut_away += cut_away
        if len(self._pending) > 2:
            # two steps stay under way: the device never waits, yet a stop is heard soon
            jax.block_until_ready(self._pending[-3][2])

    def time_compilation(self, images: int, seconds: float) -> None:
        """The first step: it counts only where a log step has no other."""
        self._compiling = (images, seconds)

    def time(self, images: int, seconds: float, input_wait: float) -> None:
        self._images += images
        self._seconds += seconds
        self._input_wait += input_wait

    def settle(self, on_nonfinite: str, last_checkpoint: int | None) -> None:
        """Waits for all steps given so far; `RunError` at the first that was not finite."""
        for step, rows, metrics in self._pending:
            values = {name: float(value) for name, value in parallel.fetch(metrics).items()}
            finite = values.pop("finite")
            self._names = tuple(values)
            if finite:
                self._read.append(values)
            elif on_nonfinite == "skip":
                self.skipped += 1
            else:
                ids = ", ".join(str(i) for i in self._split.image_ids[rows])
                kept = (
                    "no checkpoint was written yet"
                    if last_checkpoint is None
                    else f"the last good checkpoint is of step {last_checkpoint}"
                )
                raise RunError(
                    f"step {step}: loss {values['loss']}, gradient norm {values['gradient_norm']} "
                    f"on images {ids}; {kept}. Lower --config.optimizer.learning_rate, set "
                    "--config.optimizer.clip_norm=10, or --config.train.on_nonfinite=skip, and "
                    "run the same command again"
                )
        self._pending.clear()

    def read(self) -> dict[str, float | None]:
        """Means since the last reading, images/s and the share of time spent waiting for input."""
        values: dict[str, float | None] = dict.fromkeys(self._names)  # None: all were skipped
        if self._read:
            values = {n: float(np.mean([m[n] for m in self._read])) for n in self._names}
        if not self._images:
            self._images, self._seconds = self._compiling
        values["images_per_second"] = self._images / self._seconds
        values["input_wait"] = self._input_wait / self._seconds
        if self.skipped:
            values["skipped_steps"] = self.skipped
        if self._cut_away:
            values["boxes_cut_away"] = self._cut_away
        self._read, self._images, self._seconds, self._input_wait = [], 0, 0.0, 0.0
        self._cut_away = 0
        return values


def _start_from(
    state: TrainState,
    config: ml_collections.ConfigDict,
    category_ids: Sequence[int],
    console: Console,
) -> TrainState:
    """``state`` with the weights of ``model.init_from``, a file or another run's workdir."""
    source = config.model.init_from
    given = read_source(source, "config.model.init_from")
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    try:
        fitted = fit(given, fresh, config, category_ids, f"config.model.init_from={source!r}")
    except MisfitError as error:
        for line in error.wrong:  # the error's own line has the first of them alone
            console.print(f"  {line}", markup=False)
        raise
    console.print(f"weights from {source} ({given.system})")
    for line in fitted.report():
        console.print(line)
    return state.replace(params=fitted.tree["params"], batch_stats=fitted.tree["batch_stats"])


def _restore(
    state: TrainState, checkpoints: Checkpoints, step: int, folder: Path, console: Console
) -> TrainState:
    """``state`` as it was at ``step``; at step 0 its weights alone, for there was no update yet.

    So a workdir that holds nothing but imported weights can be trained with any optimiser, and
    on other classes.
    """
    if step:
        return checkpoints.restore(state, step)
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    source = f"checkpoint of step 0 in {folder}"
    merged, stayed = graft(fresh, checkpoints.restore_weights(0), source)
    note = f"; fresh, as the number of classes differs: {', '.join(stayed)}" if stayed else ""
    console.print(f"weights from the {source}{note}")
    return state.replace(params=merged["params"], batch_stats=merged["batch_stats"])


def run(config: ml_collections.ConfigDict, workdir: str, console: Console) -> int:
    """Trains to ``train.steps``, evaluating on the way; returns the exit code.

    Raises `UserError` for what the user can mend, before the step is compiled, and `RunError` for
    a loss that is not finite.
    """
    devices = parallel.Devices.local()
    devices.check_batch(config.train.batch_size, "train.batch_size")
    devices.check_batch(config.eval.batch_size, "eval.batch_size")
    directory = open_data_set(config.data.dir, config.data.name)
    train_split = open_split(directory, config.data.train_split, config.data.labels)
    eval_split = open_split(directory, config.data.eval_split, config.data.labels)
    loader = TrainLoader(train_split, config, parallel.process_index(), parallel.process_count())
    findings = short_form(train_split, eval_split, config)
    if findings and findings[0].level == "error":
        raise UserError(f"{findings[0].message} (scripts/doctor.py shows more)")
    model = retinanet.build(config, len(train_split.class_names), parallel.AXIS)
    evaluator = Evaluator(model, eval_split, config, devices)
    optimizer = build_optimizer(config)

    folder, changed = open_workdir(workdir, config)
    checkpoints = Checkpoints(folder, config.train.keep_checkpoints)
    latest_step = checkpoints.latest_step()
    first_step = latest_step or 0
    if first_step > config.train.steps:
        raise UserError(
            f"--workdir={workdir} is trained to step {first_step} already, beyond "
            f"config.train.steps={config.train.steps}; set --config.train.steps={first_step} or "
            "more, or give another --workdir"
        )
    state = init_state(model, optimizer, config)
    if latest_step is not None:
        state = _restore(state, checkpoints, latest_step, folder, console)
    elif config.model.init_from:
        state = _start_from(state, config, train_split.category_ids, console)
    write_config(folder, config)
    _introduce(config, folder, devices, loader, train_split, eval_split, state, console)
    for line in [*notices(config), *(f.message for f in findings if f.level == "warning")]:
        console.print(f"[yellow]note:[/] {escape(line)}")
    if first_step:
        console.print(f"resuming from step {first_step} of {config.train.steps}")
        for line in changed:
            console.print(f"[yellow]changed since the last run:[/] {line}")

    with StopRequest() as stop:
        loop = _Loop(config, folder, devices, evaluator, checkpoints, train_split, stop, console)
        schedule = learning_rate_schedule(config)
        step_fn = devices.train_step(make_train_step(model, optimizer, schedule, config))
        try:
            metrics = loop.run(devices.replicate(state), step_fn, loader, first_step)
        finally:
            checkpoints.close()
    return _conclude(config, folder, metrics, stop, console)


def _introduce(config, folder, devices, loader, train_split, eval_split, state, console) -> None:
    parameters = sum(np.size(x) for x in jax.tree.leaves(state.params))
    console.print(
        f"{config.model.backbone}-FPN, {parameters / 1e6:.1f} M parameters, "
        f"{config.train.precision} on {devices.describe()}"
    )
    console.print(
        f"{len(train_split)} images to train on, {len(eval_split)} to evaluate, "
        f"{len(train_split.class_names)} classes, {loader.padding_share:.0%} padding "
        f"({train_split.directory})"
    )
    if loader.left_out:
        console.print(f"{loader.left_out} images without a box left out (data.drop_empty)")
    console.print(f"workdir {folder}")


class _Loop:
    """The steps between two checkpoints, and what is due after each."""

    def __init__(self, config, folder, devices, evaluator, checkpoints, split, stop, console):
        self._config = config
        self._folder: Path = folder
        self._devices: parallel.Devices = devices
        self._evaluator: Evaluator = evaluator
        self._checkpoints: Checkpoints = checkpoints
        self._meter = Meter(split)
        self._stop: StopRequest = stop
        self._console: Console = console

    def run(self, state, step_fn, loader: TrainLoader, first_step: int) -> dict[str, Any] | None:
        """Trains from ``first_step``; returns the last evaluation, None if stopped before it."""
        config, stop, steps = self._config.train, self._stop, self._config.train.steps
        log = MetricsLog(self._folder, first_step)
        metrics = None
        evaluated = (self._folder / "eval" / str(first_step) / "metrics.json").exists()
        if first_step and self._evaluation_due(first_step) and not evaluated:  # stopped before it
            metrics = self._evaluate(state, first_step, log)
        batches = parallel.ahead(
            loader.batches(first_step, steps),
            lambda b: (b.index, int(b.cut_away.sum()), self._devices.shard(b)),
        )
        compiled = False
        with ProgressBar(self._console, "training", steps, first_step) as bar:
            bar.advance("compiling …", by=0)
            done = first_step
            while done < steps and not stop:
                started = time.perf_counter()
                try:
                    rows, cut_away, batch = next(batches)
                except (RuntimeError, RunError):
                    if stop:  # the signal has ended the workers too
                        break
                    raise
                waited = time.perf_counter() - started
                state, step_metrics = step_fn(state, batch)
                done += 1
                self._meter.add(done, rows, cut_away, step_metrics)
                if compiled:
                    elapsed = time.perf_counter() - started
                    self._meter.time(config.batch_size, elapsed, waited)
                else:  # the first step's time is the compiler's
                    jax.block_until_ready(step_metrics)
                    self._meter.time_compilation(config.batch_size, time.perf_counter() - started)
                    compiled = True
                log_due = done % config.log_every == 0 or done == steps
                save_due = done % config.checkpoint_every == 0 or done == steps or stop
                if log_due or save_due or self._evaluation_due(done):
                    before = time.perf_counter()
                    self._meter.settle(config.on_nonfinite, self._checkpoints.latest_step())
                    self._meter.time(0, time.perf_counter() - before, 0.0)
                note = None
                if log_due:
                    values = self._meter.read()
                    log.write(done, values)
                    note = _note(values)
                bar.advance(note)
                if self._evaluation_due(done) and not stop:
                    metrics = self._evaluate(state, done, log)
                elif save_due:
                    self._checkpoints.save(state)
        if stop:
            self._checkpoints.save(state)
        log.close()
        self._checkpoints.wait()
        return metrics

    def _evaluation_due(self, step: int) -> bool:
        every, steps = self._config.eval.every, self._config.train.steps
        return step == steps or (every > 0 and step % every == 0)

    def _evaluate(self, state: TrainState, step: int, log: MetricsLog) -> dict[str, Any] | None:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        with ProgressBar(self._console, f"evaluating step {step}", len(self._evaluator)) as bar:

            def advance() -> bool:
                bar.advance()
                return not self._stop

            metrics = self._evaluator.run(
                variables, step, self._folder / "eval" / str(step), advance
            )
        if metrics is None:
            self._checkpoints.save(state)
            return None
        self._checkpoints.save(state, metrics["AP"])
        scores = {name: value for name, value in metrics.items() if isinstance(value, float)}
        log.scalars("eval", step, scores)
        self._console.print(f"step {step}: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}")
        return metrics


def _note(values: dict[str, float]) -> str:
    loss = "skipped" if values["loss"] is None else f"{values['loss']:.3f}"
    return f"loss {loss} {values['images_per_second']:.1f} images/s"


def _conclude(config, folder, metrics, stop, console) -> int:
    if stop:
        console.print(
            f"stopped by {stop.signal.name}: saved in {folder}; run the same command to go on"
        )
        return stop.exit_code
    curves = visualize.draw_curves(folder)
    evaluation = folder / "eval" / str(config.train.steps)
    if metrics is None:  # an earlier run came to the end
        console.print(f"already trained to step {config.train.steps}; raise --config.train.steps")
        metrics = json.loads((evaluation / "metrics.json").read_text())
    print_table(console, metrics)
    if config.eval.pictures:
        console.print(f"detections: {evaluation / 'detections.png'}")
    if curves:
        console.print(f"curves:     {curves}")
    console.print(f"all of it:  {folder} (checkpoints, eval, metrics.jsonl, tensorboard)")
    return 0
