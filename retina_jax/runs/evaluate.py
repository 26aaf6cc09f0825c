"""An evaluation of a run: one of its checkpoints, scored on a data set."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import ml_collections

from retina_jax import parallel
from retina_jax.data.data_set import Split, open_split
from retina_jax.errors import UserError
from retina_jax.evaluation.evaluator import Evaluator
from retina_jax.interop.graft import graft
from retina_jax.models import retinanet
from retina_jax.prepare.shapes import open_data_set
from retina_jax.progress import Reporter
from retina_jax.training.checkpoint import FOLDER, Checkpoints
from retina_jax.training.step import variable_shapes
from retina_jax.training.stop import StopRequest
from retina_jax.training.workdir import CONFIG


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """What a call of `evaluate` came to."""

    folder: Path
    """Where detections.json, metrics.json and the pictures are."""
    metrics: dict[str, Any] | None
    """None where a signal stopped it; then nothing was written."""
    signal: signal.Signals | None = None


def evaluate(
    config: ml_collections.ConfigDict, workdir: str | Path, report: Reporter | None = None
) -> EvaluationResult:
    """Scores the latest (or best) checkpoint into ``workdir/eval/<step>``.

    On other data than the run's own it is ``eval/<step>-<data set>-<split>``. Raises `UserError`
    for a workdir without checkpoints, or one of another network.
    """
    report = report or Reporter()
    devices = parallel.Devices.local()
    devices.check_batch(config.eval.batch_size, "eval.batch_size")
    directory = open_data_set(config.data.dir, config.data.name)
    split = open_split(directory, config.data.eval_split, config.data.labels)
    model = retinanet.build(config, len(split.class_names))
    evaluator = Evaluator(model, split, config, devices)
    folder = Path(workdir).expanduser().absolute()
    step = None
    if (folder / FOLDER).is_dir():
        checkpoints = Checkpoints(folder)
        step = checkpoints.best_step() if config.eval.checkpoint == "best" else None
        step = checkpoints.latest_step() if step is None else step
    if step is None:
        raise UserError(f"--workdir={workdir} holds no checkpoint to evaluate; train there first")
    weights = checkpoints.restore_weights(step)
    source = f"checkpoint of step {step} in {folder}"
    variables, stayed = graft(variable_shapes(model), weights, source)
    if stayed:
        raise UserError(
            f"{source} has another number of classes than {directory} ({len(split.class_names)}); "
            "set --config.data.dir and --config.data.name to the data set that it was trained on"
        )
    report.say(f"evaluating step {step} of {folder} on {len(split)} images ({directory})")
    variables = devices.replicate(variables)
    target = folder / "eval" / f"{step}{_of_other_data(folder, config, split)}"
    advice = f"lower --config.eval.batch_size={config.eval.batch_size}"
    with StopRequest() as stop, parallel.memory_named(advice):
        metrics = evaluate_variables(evaluator, variables, step, target, stop, report)
    checkpoints.close()
    return EvaluationResult(target, metrics, stop.signal)


def evaluate_variables(
    evaluator: Evaluator,
    variables: Any,
    step: int,
    target: Path,
    stop: StopRequest,
    report: Reporter,
) -> dict[str, Any] | None:
    """COCO's metrics of replicated ``variables``, written to ``target``; None if told to stop."""
    with report.progress(f"evaluating step {step}", len(evaluator)) as bar:

        def advance() -> bool:
            bar.advance()
            return not stop

        return evaluator.run(variables, step, target, advance)


def _of_other_data(folder: Path, config: ml_collections.ConfigDict, split: Split) -> str:
    """What the folder's name says where the data is not the run's own."""
    path = folder / CONFIG
    own = json.loads(path.read_text())["data"] if path.exists() else {}
    same = all(own.get(name) == config.data[name] for name in ("dir", "name", "eval_split"))
    return "" if same else f"-{split.directory.parent.name}-{split.name}"
