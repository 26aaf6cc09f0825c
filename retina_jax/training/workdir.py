"""The folder of a run and its config."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from retina_jax.config.values import comparable, differences, from_json, resolve, to_json
from retina_jax.errors import UserError
from retina_jax.files import write_json

CONFIG = "config.json"


def write_config(
    folder: Path, config: ml_collections.ConfigDict, classes: Mapping[str, Any] | None = None
) -> None:
    """Writes ``config.json``; to be done once the run is known to fit its checkpoints.

    The fields stand there as they were asked for; under "resolved" stands what follows from them,
    and ``classes``: class_names and category_ids, by label.
    """
    resolved = resolve(config).to_json() | dict(classes or {})
    write_json(folder / CONFIG, to_json(config, resolved))


def read_config(folder: Path) -> ml_collections.ConfigDict:
    """The config of a run; `UserError` without one.

    A field that has come since has its default, one that is gone is left out.
    """
    return from_json(_read(Path(folder)))


def _read(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CONFIG}; give the --workdir of a run") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give the --workdir of a run") from None
    return content


def open_workdir(workdir: str | Path, config: ml_collections.ConfigDict) -> tuple[Path, list[str]]:
    """Makes the folder and says which fields differ from those of its last run.

    Raises `UserError` where the folder cannot be written.
    """
    folder = Path(workdir).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass  # it can be written
    except (OSError, ValueError) as error:
        raise UserError(
            f"--workdir={workdir}: {error}; give a folder that can be written"
        ) from None
    if not (folder / CONFIG).exists():
        return folder, []
    changed = differences(comparable(_read(folder)), comparable(config))
    return folder, [
        f"config.{name}: {before} before, {now} now" for name, (before, now) in changed.items()
    ]
