"""Evaluate: score a checkpoint of a workdir on its data set."""

from __future__ import annotations

import json
from pathlib import Path

import ml_collections
from rich.console import Console

from retina_jax import parallel
from retina_jax.checkpoint import FOLDER, Checkpoints
from retina_jax.data.sources import open_data_set, open_split
from retina_jax.errors import UserError
from retina_jax.evaluation.loop import Evaluator
from retina_jax.evaluation.report import print_table
from retina_jax.interop.graft import graft
from retina_jax.metrics import ProgressBar
from retina_jax.models import retinanet
from retina_jax.optimizer import build_optimizer
from retina_jax.train_step import init_state
from retina_jax.workdir import CONFIG, StopRequest


def run(config: ml_collections.ConfigDict, workdir: str, console: Console) -> int:
    """Scores the latest (or best) checkpoint into ``workdir/eval/<step>``; the exit code.

    On other data than the run's own it is ``eval/<step>-<data set>-<split>``.
    """
    devices = parallel.Devices.local()
    devices.check_batch(config.eval.batch_size, "eval.batch_size")
    directory = open_data_set(config.data.dir, config.data.name)
    split = open_split(directory, config.data.eval_split, config.data.labels)
    model = retinanet.build(config, len(split.class_names))
    evaluator = Evaluator(model, split, config, devices)
    state = init_state(model, build_optimizer(config), config)
    fresh = {"params": state.params, "batch_stats": state.batch_stats}

    folder = Path(workdir).expanduser().absolute()
    step = None
    if (folder / FOLDER).is_dir():
        checkpoints = Checkpoints(folder)
        step = checkpoints.best_step() if config.eval.checkpoint == "best" else None
        step = checkpoints.latest_step() if step is None else step
    if step is None:
        raise UserError(
            f"--workdir={workdir} holds no checkpoint to evaluate; train "
            "there first with --mode=train"
        )
    weights = checkpoints.restore_weights(step)
    source = f"checkpoint of step {step} in {folder}"
    variables, stayed = graft(fresh, weights, source)
    if stayed:
        raise UserError(
            f"{source} has another number of classes than {directory} ({len(split.class_names)}); "
            "set --config.data.dir and --config.data.name to the data set that it was trained on"
        )
    console.print(f"evaluating step {step} of {folder} on {len(split)} images ({directory})")
    variables = devices.replicate(variables)
    own = json.loads((folder / CONFIG).read_text())["data"] if (folder / CONFIG).exists() else {}
    same = all(own.get(name) == config.data[name] for name in ("dir", "name", "eval_split"))
    other = "" if same else f"-{directory.parent.name}-{split.name}"
    target = folder / "eval" / f"{step}{other}"
    with StopRequest() as stop, ProgressBar(console, "evaluating", len(evaluator)) as bar:

        def advance() -> bool:
            bar.advance()
            return not stop

        metrics = evaluator.run(variables, step, target, advance)
    checkpoints.close()
    if metrics is None:
        console.print(f"stopped by {stop.signal.name}: nothing was written")
        return stop.exit_code
    print_table(console, metrics)
    console.print(f"all of it: {target}")
    return 0
