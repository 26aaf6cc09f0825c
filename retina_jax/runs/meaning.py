"""Checks that a config and data set interpret weights as they were trained."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from retina_jax.config.fields import depending
from retina_jax.config.shell import field_flag
from retina_jax.config.values import tuples
from retina_jax.data.data_set import Split
from retina_jax.errors import UserError
from retina_jax.progress import Reporter
from retina_jax.training.workdir import (
    CONFIG,
    Classes,
    changed_fields,
    read_classes,
    read_resolved,
)
from retina_jax.wording import counted

_LONGEST_NAME = 80  # characters of a folder's name


def check_classes(folder: Path, classes: Classes, report: Reporter) -> None:
    """Raises `UserError` if the run in ``folder`` was trained on other classes.

    The same classes in another order count as different. Runs of earlier versions do not store
    their classes; in that case, reports a note instead.
    """
    stored = read_classes(folder) if (folder / CONFIG).exists() else None
    if stored is None:
        report.note(
            f"{folder} does not record the classes it was trained on; assuming the data set's "
            f"{counted(len(classes.names), 'class')}"
        )
        return
    difference = stored.difference(classes)
    if difference:
        raise UserError(
            f"--workdir={folder} was trained on different classes than the data set has: "
            f"{difference}; set --config.data.dir, --config.data.name and --config.data.labels to "
            "the data set of the run, or "
            f"start a new run from its weights with {field_flag('model.init_from', str(folder))}"
        )


def check_pixel_scale(trained: tuple[float, float] | None, split: Split, report: Reporter) -> None:
    """Reports a note if 16-bit or float images were scaled differently than for training."""
    if trained != split.pixel_scale:
        report.note(
            f"{split.label()}: 16-bit or float images were scaled with {split.pixel_scale}, but "
            f"with {trained} for training; prepare the data set with the same --pixel-range"
        )


def check_same_weights(
    folder: Path, config: ml_collections.ConfigDict, classes: Classes, report: Reporter
) -> None:
    """Raises `UserError` if a run is resumed with classes or fields that its weights contradict."""
    check_classes(folder, classes, report)
    weights = set(depending("weights"))
    for name, (before, now) in changed_fields(folder, config).items():
        # dfl or not decides what the box head predicts; the other box losses share one
        if name in weights or (name == "loss.box" and "dfl" in (before, now)):
            raise UserError(
                f"config.{name}={now} differs from the value that the weights in "
                f"--workdir={folder} were trained with; set {field_flag(name, tuples(before))}, or "
                f"start a new run from them with {field_flag('model.init_from', str(folder))}"
            )


def data_facts(splits: Sequence[Split]) -> dict[str, dict[str, str]]:
    """The fingerprints of splits, by name, for config.json."""
    return {split.name: split.fingerprints() for split in splits}


def check_same_data(
    folder: Path, config: ml_collections.ConfigDict, splits: Sequence[Split], report: Reporter
) -> None:
    """Raises `UserError` if a run is resumed on data that has changed since its checkpoint.

    Fingerprints that one side does not know are not compared. ``data.allow_changes`` turns the
    error into a note.
    """
    stored = read_resolved(folder).get("data") or {}
    for split in splits:
        known, now = stored.get(split.name) or {}, split.fingerprints()
        changed = [what for what in known if what in now and known[what] != now[what]]
        if not changed:
            continue
        line = (
            f"the {' and '.join(changed)} of {split.label()} have changed since the last "
            f"checkpoint of {folder}"
        )
        if not config.data.allow_changes:
            raise UserError(
                f"{line}; restore them, start a new run, or accept the change with "
                "--config.data.allow_changes=True"
            )
        report.note(line)


def changed_score_fields(
    folder: Path, config: ml_collections.ConfigDict
) -> dict[str, tuple[Any, Any]]:
    """Fields that affect scores and differ from the run's: name to (value in the run, now)."""
    on_scores = {*depending("weights"), *depending("scores")}
    return {n: values for n, values in changed_fields(folder, config).items() if n in on_scores}


def evaluation_name(
    folder: Path, step: int, config: ml_collections.ConfigDict, split: Split
) -> str:
    """Name of the folder in ``eval/`` for the evaluation of ``step``: the step, and differences.

    Differences are the data set and split, by name, and fields that differ from the run's, by name
    and value. A long name is shortened with a digest.
    """
    differ = changed_score_fields(folder, config) if (folder / CONFIG).exists() else {}
    parts = [str(step)]
    if any(differ.pop(name, None) for name in ("data.dir", "data.name", "data.eval_split")):
        parts.append(f"{split.directory.parent.name}-{split.name}")
    parts += [f"{name.split('.', 1)[-1]}={now}" for name, (_, now) in differ.items()]
    name = "-".join(parts).replace(" ", "").replace("/", "_")
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
        name = f"{name[: _LONGEST_NAME - 9]}-{digest}"
    return name
