"""The folder of a run and its config."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from retina_jax.config.values import (
    FITTED,
    RESOLVED,
    changed_config,
    comparable,
    differences,
    fields_set,
    from_json,
    resolve,
    to_json,
    tuples,
)
from retina_jax.data.data_set import Split
from retina_jax.errors import UserError
from retina_jax.files import clock, is_address, make_folder, open_path, write_json

CONFIG = "config.json"


@dataclasses.dataclass(frozen=True)
class Classes:
    """Names and ids of the classes of a network, by label."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    """COCO category ids."""

    @classmethod
    def of(cls, split: Split) -> Classes:
        return cls(tuple(split.class_names), tuple(int(i) for i in split.category_ids))

    def to_json(self) -> dict[str, Any]:
        """For config.json."""
        return {"class_names": self.names, "category_ids": self.ids}

    def pairs(self) -> tuple[tuple[int, str], ...]:
        """Category id and name of each class, by label."""
        return tuple(zip(self.ids, self.names, strict=True))

    def difference(self, other: Classes) -> str:
        """The first difference to ``other``, as text; "" if there is none."""
        if len(self.names) != len(other.names):
            return f"{len(self.names)} classes against {len(other.names)}"
        for label, (one, two) in enumerate(zip(self.pairs(), other.pairs(), strict=True)):
            if one != two:
                return f"class {label} is {one[1]!a} (id {one[0]}) against {two[1]!a} (id {two[0]})"
        return ""


def write_config(
    folder: Path, config: ml_collections.ConfigDict, classes: Mapping[str, Any] | None = None
) -> None:
    """Writes ``config.json``; call it after checking that the config fits the checkpoints.

    Stores the fields as set by the user; "resolved" holds derived and fitted values and
    ``classes`` (`Classes.to_json`; None: not known).
    """
    resolved = resolve(config).to_json() | dict(classes or {})
    write_json(folder / CONFIG, to_json(config, resolved))


def read_pixel_scale(folder: Path) -> tuple[float, float] | None:
    """The 16-bit or float values that map to 0 and 255; None: no such images in the data."""
    scale = read_resolved(folder).get("pixel_scale")
    return None if scale is None else (float(scale[0]), float(scale[1]))


def read_classes(folder: Path) -> Classes | None:
    """The classes of a run's network; None if an earlier version did not store them."""
    resolved = read_resolved(folder)
    if "class_names" not in resolved or "category_ids" not in resolved:
        return None
    return Classes(tuple(resolved["class_names"]), tuple(resolved["category_ids"]))


def read_resolved(folder: Path) -> dict[str, Any]:
    """What a run stored under "resolved": classes, derived values, fingerprints of its data."""
    return dict(_read(folder).get(RESOLVED, {}))


def read_config(folder: Path) -> ml_collections.ConfigDict:
    """The config of a run; `UserError` without one.

    Fields added since have their defaults; removed fields are dropped.
    """
    return from_json(_read(folder))


def read_fitted(folder: Path) -> dict[str, Any]:
    """The fields that ``data.fit`` chose for a run, by name; {} without a config.json."""
    if not (folder / CONFIG).exists():
        return {}
    return {name: tuples(value) for name, value in read_resolved(folder).get(FITTED, {}).items()}


def as_in_run(config: ml_collections.ConfigDict, folder: Path) -> ml_collections.ConfigDict:
    """``config`` with the values fitted for the run in ``folder``, where it sets none.

    For commands that take a run and a config of its experiment.
    """
    if not config.data.fit:
        return config
    taken = fields_set(config)
    return changed_config(config, {n: v for n, v in read_fitted(folder).items() if n not in taken})


def _read(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CONFIG}; set --workdir to the folder of a run") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); set --workdir to the folder of a run"
        ) from None
    return content


def workdir_at(workdir: str | Path, flag: str = "--workdir") -> Path:
    """The absolute path, or the address, of a workdir that need not exist."""
    folder = open_path(workdir, flag)
    return folder if is_address(folder) else folder.absolute()


def open_workdir(workdir: str | Path, config: ml_collections.ConfigDict) -> tuple[Path, list[str]]:
    """Creates the folder of a run; also returns a line for each field that changed since last time.

    Raises `UserError` if the folder is not writable.
    """
    folder = workdir_at(workdir)
    try:
        make_folder(folder)
        clock(folder)  # the folder is writable
    except ConnectionError:  # a fault of an object store, not of the user
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"--workdir={workdir}: {error}; use a writable folder") from None
    changed = changed_fields(folder, config)
    return folder, [
        f"config.{name}: {before} before, {now} now" for name, (before, now) in changed.items()
    ]


def changed_fields(folder: Path, config: ml_collections.ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Fields that differ from the last run in ``folder``: name to (before, now)."""
    if not (folder / CONFIG).exists():
        return {}
    return differences(comparable(_read(folder)), comparable(config))
