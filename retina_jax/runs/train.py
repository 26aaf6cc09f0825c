"""Starts or resumes a training run, with periodic evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from retina_jax import parallel
from retina_jax.config import notices, resolve
from retina_jax.config.shell import field_flag
from retina_jax.data.data_set import Split, open_split
from retina_jax.data.loader import TrainLoader
from retina_jax.doctor.examine import short_form
from retina_jax.errors import RunError, UserError, is_disk_full
from retina_jax.evaluation.evaluator import Evaluator
from retina_jax.interop.graft import graft
from retina_jax.interop.start import start_from
from retina_jax.models import retinanet
from retina_jax.prepare.shapes import open_data_set
from retina_jax.progress import Reporter
from retina_jax.runs.evaluate import evaluate_variables
from retina_jax.runs.fitting import fitted
from retina_jax.runs.hosts import check_alike, check_shared
from retina_jax.runs.meaning import (
    check_pixel_scale,
    check_same_data,
    check_same_weights,
    data_facts,
)
from retina_jax.runs.weights import read_source
from retina_jax.training import averaging
from retina_jax.training.checkpoint import Checkpoints
from retina_jax.training.curves import draw_curves
from retina_jax.training.error_log import errors_recorded
from retina_jax.training.lease import Lease
from retina_jax.training.loop import LoopResult, TrainingLoop
from retina_jax.training.optimizer import build_optimizer, learning_rate_schedule
from retina_jax.training.profiled_steps import ProfiledSteps
from retina_jax.training.step import init_state, make_train_step, state_shapes
from retina_jax.training.stop import StopRequest
from retina_jax.training.workdir import Classes, changed_fields, open_workdir, write_config
from retina_jax.types import TrainState
from retina_jax.wording import counted


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """The result of `train`."""

    folder: Path
    metrics: dict[str, Any] | None = None
    """COCO metrics of the last evaluation, or of the best checkpoint if ``train.patience`` ended
    the run; None if a signal stopped it."""
    signal: signal.Signals | None = None
    """The signal that stopped the run; the run is saved and can resume."""
    evaluation: Path | None = None
    """Folder of the evaluation with these metrics."""
    curves: Path | None = None
    """The plot of losses, learning rate and AP."""
    failed_evaluations: int = 0
    """Number of evaluations that failed; metrics is None if the last one did."""


@dataclasses.dataclass(frozen=True)
class Begun:
    """A run that is ready for its first step."""

    config: ml_collections.ConfigDict
    """Fitted to the data if ``data.fit`` is set."""
    folder: Path
    devices: parallel.Devices
    loader: TrainLoader
    evaluator: Evaluator
    checkpoints: Checkpoints
    model: retinanet.RetinaNet
    optimizer: optax.GradientTransformation
    state: TrainState
    first_step: int


def train(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    report: Reporter | None = None,
    may_exit: bool = False,
    profile: ProfiledSteps | None = None,
    trust: bool = False,
    staged: bool = False,
) -> TrainingResult:
    """Trains up to ``train.steps`` in ``workdir`` with periodic evaluation; resumes if possible.

    ``may_exit``: whether a signal may end the program at once when nothing would be lost, rather
    than at the next step. ``profile``: steps to record in ``profile/``. ``trust``: as
    for `runs.weights.read_source`. ``staged``: announces the stages, after the first of four.
    Every process of a run calls this (`parallel.start`).

    Raises `UserError` for errors that the user can fix, before compilation, and
    `NonFiniteLossError` for a non-finite loss.
    """
    report = report or Reporter()
    with contextlib.ExitStack() as held, StopRequest(may_exit) as stop:
        stop.nothing_to_save(True)  # until the loop has taken a step
        run = begin(config, workdir, held, report, trust, staged)
        config = run.config

        def evaluate(state: TrainState, step: int) -> dict[str, Any] | None:
            variables = averaging.variables_of(state)
            target = run.folder / "eval" / str(step)
            return evaluate_variables(run.evaluator, variables, step, target, stop, report)

        def restore(step: int) -> TrainState:
            shapes = state_shapes(run.model, run.optimizer, config)
            return run.devices.replicate(run.checkpoints.restore(shapes, step))

        loop = TrainingLoop(
            config, run.folder, run.devices, evaluate, run.checkpoints, restore, stop, report,
            profile, run.evaluator.drawn,
        )  # fmt: skip
        schedule = learning_rate_schedule(config)
        step_fn = run.devices.train_step(
            make_train_step(run.model, run.optimizer, schedule, config)
        )
        recorded = errors_recorded(run.folder, parallel.is_main())
        with recorded, explain_faults(config, run.folder):
            state = run.devices.replicate(run.state)
            run.devices.check_equal(state, "at the start")
            result = loop.run(state, step_fn, run.loader, run.first_step)
        if result.stopped:
            return TrainingResult(run.folder, signal=stop.signal)
        run.evaluator.finish_report(lambda: stop.signal is not None)
        return finished(config, run, result, report)


def finished(
    config: ml_collections.ConfigDict, run: Begun, result: LoopResult, report: Reporter
) -> TrainingResult:
    """The result of a run that was not stopped; draws its curves."""
    folder, metrics = run.folder, result.metrics
    evaluation = folder / "eval" / str(config.train.steps)
    if result.ended_early is not None:
        best = run.checkpoints.best_or_latest_step()
        for line in _early_end(result, config.train.steps, best):
            report.say(line)
        evaluation = folder / "eval" / str(best)
        metrics = _metrics_in(evaluation)
    elif metrics is None and not result.failed_evaluations:  # an earlier call reached the end
        report.say(
            f"already trained to step {config.train.steps}; to continue, raise --config.train.steps"
        )
        metrics = _metrics_in(evaluation)
    curves = draw_curves(folder) if parallel.is_main() else None
    return TrainingResult(folder, metrics, None, evaluation, curves, result.failed_evaluations)


def _early_end(result: LoopResult, steps: int, best_checkpoint: int) -> list[str]:
    """Why a run ended before its last step, and how to continue it, for the console."""
    step, average_precision = result.history.best
    waited = result.history.since_best()
    return [
        f"stopped early at step {result.ended_early} of {steps}: no better AP in "
        f"{counted(waited, 'evaluation')} since step {step} ({average_precision:.3f}); the best "
        f"checkpoint is step {best_checkpoint}",
        "to continue, run the same command with --config.train.patience=0, or with "
        f"{waited + 1} or more",
    ]


def _metrics_in(evaluation: Path) -> dict[str, Any]:
    path = evaluation / "metrics.json"
    if not path.exists():
        raise UserError(
            f"{path} is missing; run the evaluate command with --config.eval.checkpoint=best"
        )
    return json.loads(path.read_text())


def begin(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    held: contextlib.ExitStack,
    report: Reporter,
    trust: bool,
    staged: bool,
) -> Begun:
    """Opens data and workdir, and makes or restores the state; takes the workdir's lease."""
    devices = parallel.Devices.local()
    devices.check_batch(config.train.batch_size, "train.batch_size", config.train.accumulate)
    devices.check_batch(config.eval.batch_size, "eval.batch_size")
    directory = open_data_set(config.data.dir, config.data.name)
    train_split = open_split(directory, config.data.train_split, config.data.labels, report)
    eval_split = open_split(directory, config.data.eval_split, config.data.labels, report)
    fit = fitted(config, train_split, eval_split, workdir)
    config = fit.config
    check_alike(config, [train_split, eval_split], devices)
    loader = TrainLoader(train_split, config, parallel.process_index(), parallel.process_count())
    check_pixel_scale(train_split.pixel_scale, eval_split, report)
    findings = short_form(train_split, eval_split, config, fitted=fit.fields)
    if findings and findings[0].level == "error":
        raise UserError(f"{findings[0].message} (run the doctor command for details)")
    model = retinanet.build(config, len(train_split.class_names), parallel.AXIS)
    evaluator = Evaluator(model, eval_split, config, devices, report)
    optimizer = build_optimizer(config)

    if staged:
        checked = ({f.level for f in findings} & {"warning"} and "warnings below") or "no problems"
        report.say(f"2/4 check: {checked} (retina-jax doctor reads every record)")
        report.say(f"3/4 fit: {'data.fit is off' if not config.data.fit else 'as follows'}")
    fit.say(report)
    if staged:
        report.say("4/4 train")
    folder, changed = open_workdir(workdir, config)
    check_shared(folder)
    if parallel.is_main():
        held.enter_context(Lease(folder, report))
    parallel.group.barrier("lease")
    before = changed_fields(folder, config)
    checkpoints = Checkpoints(folder, config.train.keep_checkpoints)
    held.callback(checkpoints.close)  # before the lease ends
    held.callback(evaluator.abandon_report)
    latest_step = json.loads(
        parallel.group.tell("latest step", json.dumps(checkpoints.latest_step()))
    )
    first_step = latest_step or 0
    if first_step > config.train.steps:
        raise UserError(
            f"--workdir={workdir} is already trained to step {first_step}, beyond "
            f"config.train.steps={config.train.steps}; set --config.train.steps={first_step} or "
            "more, or use another --workdir"
        )
    classes = Classes.of(train_split)
    if latest_step:
        check_same_weights(folder, config, classes, report)
        check_same_data(folder, config, [train_split, eval_split], report)
        shapes = state_shapes(model, optimizer, config)
        state, first_step, damaged = checkpoints.restore_newest(shapes)
        for line in damaged:
            report.note(line)
        if note := averaging.change(config.train.ema, checkpoints.has_average(first_step)):
            report.note(note)
    else:
        state = initial_state(
            model, optimizer, config, checkpoints, folder, train_split, report, trust
        )
    if parallel.is_main():
        facts = classes.to_json() | {"pixel_scale": train_split.pixel_scale}
        facts |= {"data": data_facts([train_split, eval_split])} | fit.facts()
        write_config(folder, config, facts)
    parallel.group.barrier("config written")
    _introduce(config, folder, devices, loader, train_split, eval_split, state, report)
    warnings = [f.message for f in findings if f.level == "warning"]
    for line in [*notices(config), *warnings, *evaluator.notices()]:
        report.note(line)
    if first_step:
        report.say(f"resuming from step {first_step} of {config.train.steps}")
        for line in changed:
            report.note(line, label="changed since the last run")
        if config.optimizer.schedule == "cosine" and "train.steps" in before:
            report.note(
                f"optimizer.schedule=cosine ends at train.steps: from now on the learning rate "
                f"follows the curve for {config.train.steps} steps, not the one for "
                f"{before['train.steps'][0]}"
            )
    return Begun(
        config, folder, devices, loader, evaluator, checkpoints, model, optimizer, state, first_step
    )


@contextlib.contextmanager
def explain_faults(config: ml_collections.ConfigDict, folder: Path) -> Iterator[None]:
    """Turns a full disk or a lack of device memory into an error with advice."""
    advice = (
        f"raise --config.train.accumulate={config.train.accumulate}, "
        f"lower --config.train.batch_size={config.train.batch_size} or "
        f"{field_flag('data.short_side', config.data.short_side)}"
    )
    try:
        with parallel.explain_out_of_memory(advice):
            yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise RunError(
            f"the disk of --workdir={folder} is full; the last complete checkpoint is kept; free "
            "some space and run the same command again"
        ) from error


def initial_state(
    model: retinanet.RetinaNet,
    optimizer: optax.GradientTransformation,
    config: ml_collections.ConfigDict,
    checkpoints: Checkpoints,
    folder: Path,
    split: Split,
    report: Reporter,
    trust: bool = False,
) -> TrainState:
    """The state before the first step of a run in ``folder``.

    Its weights are those of a checkpoint of step 0, else of ``model.init_from``, else random.
    """
    source, weights = config.model.init_from, None
    starts_over = 0 not in checkpoints.steps()
    if starts_over and source:  # before anything is compiled
        weights = read_source(source, "config.model.init_from", report, trust)
        parallel.group.barrier("weights read", 3600.0)  # a host may have to fetch them first
        report.say(f"weights from {source} ({weights.system})")
    state = init_state(model, optimizer, config)
    if not starts_over:
        return _start_from_step_0(state, checkpoints, folder, report)
    if weights is None:
        return state
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    named = f"config.model.init_from={source!r}"
    classes = split.category_ids, split.class_names
    tree = start_from(weights, fresh, config, *classes, named, report.say, report.note)
    return averaging.with_weights(state, tree)


def _start_from_step_0(
    state: TrainState, checkpoints: Checkpoints, folder: Path, report: Reporter
) -> TrainState:
    """``state`` with the weights of a checkpoint of step 0, before any update.

    Taking only the weights lets a workdir with imported weights train with any optimiser and on
    other classes.
    """
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    source = f"checkpoint of step 0 in {folder}"
    merged, unmatched = graft(fresh, checkpoints.restore_weights(0), source)
    note = ""
    if unmatched:
        note = f"; initialised randomly (number of classes differs): {', '.join(unmatched)}"
    report.say(f"weights from the {source}{note}")
    return averaging.with_weights(state, merged)


def _introduce(config, folder, devices, loader, train_split, eval_split, state, report) -> None:
    parameters = sum(np.size(x) for x in jax.tree.leaves(state.params))
    report.say(
        f"{config.model.backbone}-FPN, {parameters / 1e6:.1f} M parameters, "
        f"{config.train.precision} on {devices.describe()}"
    )
    report.say(
        f"{counted(len(train_split), 'training image')}, "
        f"{counted(len(eval_split), 'evaluation image')}, "
        f"{counted(len(train_split.class_names), 'class')}, {loader.padding_share:.0%} padding "
        f"({train_split.directory})"
    )
    if loader.left_out:
        report.say(f"images without boxes, excluded (data.drop_empty): {loader.left_out}")
    if loader.repeats:
        report.say(loader.repeats.describe())
    if config.data.augmentation:
        values = (f"{name}={value}" for name, value in resolve(config).augmentation.items())
        report.say(f"data.augmentation={config.data.augmentation}: {', '.join(values)}")
    report.say(f"workdir {folder}")
