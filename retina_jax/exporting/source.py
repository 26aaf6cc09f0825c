"""The input of an export: the network of a run, its weights, and what is known about them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_collections

from retina_jax.config import resolve
from retina_jax.errors import UserError
from retina_jax.interop.graft import graft
from retina_jax.interop.structure import class_outputs
from retina_jax.models import retinanet
from retina_jax.training.checkpoint import FOLDER, Checkpoints
from retina_jax.training.step import variable_shapes
from retina_jax.training.workdir import read_classes, read_pixel_scale, read_resolved, workdir_at


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network."""

    folder: Path
    """The workdir."""
    step: int
    averaged: bool
    """Whether the weights are an average (``train.ema``)."""
    model: retinanet.RetinaNet
    variables: dict[str, Any]
    config: ml_collections.ConfigDict
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    metrics: dict[str, Any] | None
    """Scores of this step on the run's own data; None if it was not evaluated."""
    data: dict[str, dict[str, str]]
    """Fingerprints of the splits that the run was trained on, by name."""
    pixel_scale: tuple[float, float] | None
    """The 16-bit or float values that the run mapped to 0 and 255."""


def read_run(workdir: str | Path, config: ml_collections.ConfigDict) -> Trained:
    """The best checkpoint of a run by AP, or the latest if none was evaluated.

    Raises `UserError` for a workdir without checkpoints, or whose network is not ``config``'s.
    """
    folder = workdir_at(workdir)
    if not (folder / FOLDER).is_dir():
        raise UserError(f"--workdir={workdir} has no checkpoint to export; train it first")
    checkpoints = Checkpoints(folder)
    step = checkpoints.best_or_latest_step()
    if step is None:
        raise UserError(f"--workdir={workdir} has no complete checkpoint; train it first")
    weights, averaged = checkpoints.restore_weights(step), checkpoints.has_average(step)
    checkpoints.close()
    outputs, resolved = class_outputs(weights), resolve(config)
    count = outputs // resolved.anchors_per_place - resolved.background_logits
    model = retinanet.build(config, count)
    variables, _ = graft(variable_shapes(model), weights, f"checkpoint of step {step} in {folder}")
    classes = read_classes(folder)
    named = classes is not None and len(classes.names) == count
    metrics = folder / "eval" / str(step) / "metrics.json"
    return Trained(
        folder=folder,
        step=step,
        averaged=averaged,
        model=model,
        variables=variables,
        config=config,
        class_names=classes.names if named else tuple(f"class {i}" for i in range(count)),
        category_ids=classes.ids if named else tuple(range(1, count + 1)),
        metrics=json.loads(metrics.read_text()) if metrics.is_file() else None,
        data=read_resolved(folder).get("data") or {},
        pixel_scale=read_pixel_scale(folder),
    )
