"""Whether weights still mean what they meant when they were trained."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import ml_collections

from retina_jax.config.fields import depending
from retina_jax.config.shell import field_flag
from retina_jax.config.values import tuples
from retina_jax.data.data_set import Split
from retina_jax.errors import UserError
from retina_jax.progress import Reporter
from retina_jax.training.workdir import CONFIG, Classes, changed_fields, read_classes

_LONGEST_NAME = 80  # characters of a folder's name


def check_classes(folder: Path, classes: Classes, report: Reporter) -> None:
    """Raises `UserError` where the run in ``folder`` was trained on other classes.

    The same number of classes in another order counts as others. Runs of earlier versions do not
    say their classes; then a line does.
    """
    stored = read_classes(folder) if (folder / CONFIG).exists() else None
    if stored is None:
        report.note(
            f"{folder} does not say which classes it was trained on; its outputs are taken for "
            f"the data set's {len(classes.names)}"
        )
        return
    difference = stored.difference(classes)
    if difference:
        raise UserError(
            f"--workdir={folder} was trained on other classes than the data set has: "
            f"{difference}; set --config.data.dir, --config.data.name and --config.data.labels to "
            "its data set, or "
            f"start a new run from its weights with {field_flag('model.init_from', str(folder))}"
        )


def check_pixel_scale(trained: tuple[float, float] | None, split: Split, report: Reporter) -> None:
    """A line where 16-bit or float images were scaled otherwise than those of training."""
    if trained != split.pixel_scale:
        report.note(
            f"{split.label()}: its 16-bit or float images were scaled by {split.pixel_scale}, "
            f"those of training by {trained}; prepare it with the same --pixel-range"
        )


def check_same_weights(
    folder: Path, config: ml_collections.ConfigDict, classes: Classes, report: Reporter
) -> None:
    """Raises `UserError` where a run is resumed with classes or fields that its weights deny."""
    check_classes(folder, classes, report)
    weights = set(depending("weights"))
    for name, (before, now) in changed_fields(folder, config).items():
        if name in weights:
            raise UserError(
                f"config.{name}={now} is not what the weights in --workdir={folder} were trained "
                f"with; set {field_flag(name, tuples(before))}, or start a new run from them with "
                f"{field_flag('model.init_from', str(folder))}"
            )


def scored_otherwise(folder: Path, config: ml_collections.ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Fields on which scores depend that differ from the run's own: name to (the run's, now)."""
    on_scores = {*depending("weights"), *depending("scores")}
    return {n: values for n, values in changed_fields(folder, config).items() if n in on_scores}


def evaluation_name(
    folder: Path, step: int, config: ml_collections.ConfigDict, split: Split
) -> str:
    """Name of the folder below ``eval/`` for the scores of ``step``: the step where all is the
    run's own, else what differs.

    The data set and split stand in it by name; fields by name and value, or by a digest where they
    are many.
    """
    differ = scored_otherwise(folder, config) if (folder / CONFIG).exists() else {}
    parts = [str(step)]
    if any(differ.pop(name, None) for name in ("data.dir", "data.name", "data.eval_split")):
        parts.append(f"{split.directory.parent.name}-{split.name}")
    parts += [f"{name.split('.', 1)[-1]}={now}" for name, (_, now) in differ.items()]
    name = "-".join(parts).replace(" ", "").replace("/", "_")
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
        name = f"{name[: _LONGEST_NAME - 9]}-{digest}"
    return name
