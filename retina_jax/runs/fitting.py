"""The config that a command works with: as asked for, and fitted to the data where it asks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_collections

from retina_jax.config import fields_set, validate
from retina_jax.config.values import FITTED, changed_config
from retina_jax.data.data_set import Split, open_split
from retina_jax.doctor import fit
from retina_jax.prepare.shapes import open_data_set
from retina_jax.progress import Reporter
from retina_jax.training.checkpoint import has_checkpoints
from retina_jax.training.workdir import read_fitted, workdir_at
from retina_jax.wording import counted


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A config whose fields have the values that the command uses."""

    config: ml_collections.ConfigDict
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The fitted ones, by name."""
    lines: tuple[str, ...] = ()
    """For the user."""

    def facts(self) -> dict[str, Any]:
        """For config.json, under "resolved"."""
        return {FITTED: self.fields} if self.fields else {}

    def say(self, report: Reporter) -> None:
        for line in self.lines:
            report.say(line)


def fitted(
    config: ml_collections.ConfigDict,
    train: Split,
    evaluation: Split,
    workdir: str | Path | None = None,
) -> Fitted:
    """``config`` fitted to the data if ``data.fit`` is set.

    Fields that an experiment, a flag or a run's config.json set keep their values. A workdir with
    a checkpoint is not fitted again: its values are read. The same on every host.
    """
    free = _free(config)
    if not free:
        return Fitted(config)
    stored = _stored(workdir)
    fields = {name: value for name, value in stored.items() if name in free}
    lines: tuple[str, ...] = ()
    if fields:
        lines = (f"fitted values (data.fit) as in {workdir}: {fit.flags(fields)}",)
    if remaining := free - fields.keys():
        chosen = fit.fit(train, evaluation, changed_config(config, fields), remaining)
        fields |= chosen.fields
        if chosen.fields:
            images = counted(len(train), "training image")
            lines += (f"fitted to {images} (data.fit):", *(f"  {line}" for line in chosen.lines))
    effective = changed_config(config, fields)
    validate(effective)
    return Fitted(effective, {n: fields[n] for n in fit.FITTED if n in fields}, lines)


def fitted_to_data(
    config: ml_collections.ConfigDict, report: Reporter, workdir: str | Path | None = None
) -> Fitted:
    """`fitted` for commands that do not open the data set themselves."""
    if not _free(config):
        return Fitted(config)
    directory = open_data_set(config.data.dir, config.data.name)
    names = (config.data.train_split, config.data.eval_split)
    splits = (open_split(directory, name, config.data.labels, report) for name in names)
    return fitted(config, *splits, workdir)


def not_fitted(config: ml_collections.ConfigDict, what: str) -> list[str]:
    """A line for commands that open no data set, if ``config`` asks to be fitted to one."""
    if not _free(config):
        return []
    return [
        f"data.fit: {what} opens no data set and uses the values before the fit; to use those of a "
        "run, copy the flags that train prints"
    ]


def _free(config: ml_collections.ConfigDict) -> frozenset[str]:
    """The fields that may be fitted; empty without ``data.fit``."""
    return frozenset(fit.FITTED) - fields_set(config) if config.data.fit else frozenset()


def _stored(workdir: str | Path | None) -> dict[str, Any]:
    """The fitted fields of a run that has begun."""
    if workdir is None or not has_checkpoints(folder := workdir_at(workdir)):
        return {}
    return read_fitted(folder)
