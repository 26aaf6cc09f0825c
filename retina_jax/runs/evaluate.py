"""Evaluates a checkpoint of a run on a data set."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any

import ml_collections

from retina_jax import parallel
from retina_jax.data.data_set import open_split
from retina_jax.errors import UserError
from retina_jax.evaluation.evaluator import Evaluator
from retina_jax.interop.graft import graft
from retina_jax.models import retinanet
from retina_jax.prepare.shapes import open_data_set
from retina_jax.progress import Reporter
from retina_jax.runs.hosts import check_alike
from retina_jax.runs.meaning import (
    changed_score_fields,
    check_classes,
    check_pixel_scale,
    evaluation_name,
)
from retina_jax.training.checkpoint import restore_chosen
from retina_jax.training.step import variable_shapes
from retina_jax.training.stop import StopRequest
from retina_jax.training.workdir import CONFIG, Classes, as_in_run, read_pixel_scale, workdir_at
from retina_jax.wording import counted


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """The result of `evaluate`."""

    folder: Path
    """The folder of detections.json, metrics.json, detections.png and report.html."""
    metrics: dict[str, Any] | None
    """None if a signal stopped the evaluation; then nothing was written."""
    signal: signal.Signals | None = None


def evaluate(
    config: ml_collections.ConfigDict, workdir: str | Path, report: Reporter | None = None
) -> EvaluationResult:
    """Evaluates the latest (or best) checkpoint; writes the results to ``workdir/eval/<step>``.

    If the data or fields that affect scores differ from the run's, the name of the folder lists
    the differences. Raises `UserError` for a workdir without checkpoints, or whose checkpoint has
    another network or other classes.
    """
    report = report or Reporter()
    config = as_in_run(config, workdir_at(workdir))
    devices = parallel.Devices.local()
    devices.check_batch(config.eval.batch_size, "eval.batch_size")
    directory = open_data_set(config.data.dir, config.data.name)
    split = open_split(directory, config.data.eval_split, config.data.labels, report)
    check_alike(config, [split], devices)
    model = retinanet.build(config, len(split.class_names))
    evaluator = Evaluator(model, split, config, devices, report)
    folder = workdir_at(workdir)
    chosen, weights = restore_chosen(workdir, config.eval.checkpoint)
    step = chosen.step
    check_classes(folder, Classes.of(split), report)
    variables, unmatched = graft(variable_shapes(model), weights, str(chosen))
    if unmatched:
        raise UserError(
            f"{chosen} has a different number of classes than {directory} "
            f"({len(split.class_names)}); set --config.data.dir and --config.data.name to the data "
            "set that it was trained on"
        )
    if (folder / CONFIG).exists():
        check_pixel_scale(read_pixel_scale(folder), split, report)
        for name, (own, now) in changed_score_fields(folder, config).items():
            report.note(f"config.{name} is {own} in the run, {now} in this evaluation")
    kind = " (averaged weights)" if chosen.averaged else ""
    images = counted(len(split), "image")
    report.say(f"evaluating step {step} of {folder}{kind} on {images} ({directory})")
    variables = devices.replicate(variables)
    target = folder / "eval" / evaluation_name(folder, step, config, split)
    for line in evaluator.notices():
        report.note(line)
    advice = f"lower --config.eval.batch_size={config.eval.batch_size}"
    try:
        with StopRequest() as stop, parallel.explain_out_of_memory(advice):
            metrics = evaluate_variables(evaluator, variables, step, target, stop, report)
        evaluator.finish_report()
    finally:
        evaluator.abandon_report()
    return EvaluationResult(target, metrics, stop.signal)


def evaluate_variables(
    evaluator: Evaluator,
    variables: Any,
    step: int,
    target: Path,
    stop: StopRequest,
    report: Reporter,
) -> dict[str, Any] | None:
    """Evaluates replicated ``variables`` into ``target``; returns None after a stop request."""
    with report.progress(f"evaluating step {step}", len(evaluator)) as bar:
        return evaluator.run(
            variables, step, target, bar.advance, lambda batch: stop.before((step, batch + 1))
        )
