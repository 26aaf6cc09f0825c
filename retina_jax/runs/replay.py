"""Repeats one step of a run on its stored batch; writes nothing to the run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path

import ml_collections
import numpy as np

from retina_jax import parallel
from retina_jax.data.data_set import Split, open_split
from retina_jax.data.loader import TrainLoader
from retina_jax.errors import RunError, UserError
from retina_jax.files import open_path
from retina_jax.models import retinanet
from retina_jax.prepare.shapes import open_data_set
from retina_jax.progress import Reporter
from retina_jax.runs.meaning import check_same_data
from retina_jax.runs.train import initial_state
from retina_jax.training import kept_batch
from retina_jax.training.checkpoint import FOLDER, Checkpoints
from retina_jax.training.examination import Examination, call_names, make_examination
from retina_jax.training.history import HISTORY_NOTE, History
from retina_jax.training.kept_batch import KeptBatch
from retina_jax.training.metrics import by_name
from retina_jax.training.optimizer import (
    build_optimizer,
    decayed_factor,
    learning_rate_schedule,
)
from retina_jax.training.step import make_train_step, state_shapes
from retina_jax.training.workdir import as_in_run, read_classes, workdir_at
from retina_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class Replay:
    """A step, examined."""

    kept: KeptBatch
    weights_of: int
    """The step whose weights were used."""
    metrics: dict[str, float]
    """Of the training step itself."""
    state: TrainState
    """That the step began with; NumPy, like the rest."""
    names: list[str]
    """Of the calls of modules in ``examination.outputs``."""
    examination: Examination

    @property
    def exact(self) -> bool:
        """Whether the weights are those that the step saw in training."""
        return self.weights_of == self.kept.step - 1


def replay(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    batch: str | Path,
    most_repeated: int,
    report: Reporter,
    trust: bool = False,
) -> Replay:
    """Repeats the step of a stored ``batch`` (a file) with the weights that it saw.

    The weights are recomputed from the newest checkpoint before the step, or from the start, if at
    most ``most_repeated`` steps lie in between. Otherwise, those of the checkpoint nearest to the
    step, before or after it, are used. ``trust``: as for `runs.weights.read_source`. Raises
    `UserError` for files that are missing or do not fit.
    """
    folder = workdir_at(workdir)
    config = as_in_run(config, folder)
    kept = kept_batch.read(open_path(batch, "--batch"))
    if not (folder / FOLDER).is_dir():
        raise UserError(f"--workdir={workdir} has no {FOLDER}; set it to the folder of the run")

    @functools.cache
    def split() -> Split:
        directory = open_data_set(config.data.dir, config.data.name)
        return open_split(directory, config.data.train_split, config.data.labels)

    classes = read_classes(folder)
    count = len(classes.names if classes else split().class_names)
    devices = _devices_for(config, len(kept.image_ids))
    model = retinanet.build(config, count, parallel.AXIS)
    optimizer = build_optimizer(config)
    step_fn = devices.train_step(
        make_train_step(model, optimizer, learning_rate_schedule(config), config)
    )
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        first, repeated = _beginning(checkpoints.steps(), kept.step - 1, most_repeated)
        if first in checkpoints.steps() and first > 0:
            state = _restored(checkpoints, state_shapes(model, optimizer, config), first)
        else:
            state = initial_state(
                model, optimizer, config, checkpoints, folder, split(), report, trust
            )
        newest = checkpoints.latest_step()
        notes = checkpoints.notes(newest) if newest else {}
    decays = History.from_json(notes.get(HISTORY_NOTE)).decays
    state = devices.replicate(state)
    if repeated:
        check_same_data(folder, config, [split()], report)
        devices.check_batch(config.train.batch_size, "train.batch_size", config.train.accumulate)
        report.say(
            f"repeating steps {first + 1} to {first + repeated}, to recompute the weights of the "
            "step; --repeat=0 uses the nearest checkpoint instead"
        )
        batches = TrainLoader(split(), config).batches(first, first + repeated)
        batches = parallel.prefetch(batches, devices.shard)
        with (
            contextlib.closing(batches),
            report.progress("repeating", first + repeated, first) as bar,
        ):
            for step, earlier in enumerate(batches, first + 1):
                state, values = step_fn(state, earlier)
                if step in decays and state.rate_factor is not None:
                    factor = decayed_factor(parallel.fetch(state.rate_factor), config)
                    state = state.replace(rate_factor=devices.replicate(factor))
                bar.advance(f"loss {float(values['loss']):.3f}")  # waits, so batches do not pile up
    # of another step, the weights are taken as if they were those that the step saw
    state = state.replace(step=devices.replicate(np.asarray(kept.step - 1, np.int32)))
    began_with = parallel.fetch(state)
    examine, names = make_examination(model, config)
    sharded = devices.shard(kept.batch)
    advice = f"raise --config.train.accumulate={config.train.accumulate}, or use more devices"
    with parallel.explain_out_of_memory(advice):
        state, examination = devices.train_step(examine)(state, sharded)
        examination = parallel.fetch(examination)
        _, metrics = step_fn(state, sharded)
        metrics = by_name(parallel.fetch(metrics))
    return Replay(kept, first + repeated, metrics, began_with, call_names(names), examination)


def _devices_for(config: ml_collections.ConfigDict, images: int) -> parallel.Devices:
    """As many devices of this machine as can share the global batch."""
    local = parallel.Devices.local()
    parts = config.train.accumulate
    shared = [n for n in range(1, len(local) + 1) if images % (n * parts) == 0]
    devices = parallel.Devices.local(max(shared, default=1))
    devices.check_batch(images, "train.batch_size", parts)
    return devices


def _beginning(steps: list[int], before: int, most_repeated: int) -> tuple[int, int]:
    """The step to start from, and how many steps to repeat from there.

    ``steps`` have checkpoints; step 0 needs none. ``before`` is the step whose weights are wanted.
    """
    candidates = {0, *steps}
    newest = max(step for step in candidates if step <= before)
    if before - newest <= most_repeated:
        return newest, before - newest
    return min(candidates, key=lambda step: abs(step - before)), 0


def _restored(checkpoints: Checkpoints, shapes: TrainState, step: int) -> TrainState:
    try:
        return checkpoints.restore(shapes, step)
    except UserError:
        raise
    except Exception as error:  # whatever JSON, TensorStore and Orbax make of damaged files
        first = (str(error).strip().splitlines() or [""])[0]
        raise RunError(
            f"the checkpoint of step {step} cannot be read ({type(error).__name__}: "
            f"{first[:200]}); run the training command again, which moves it aside"
        ) from error
