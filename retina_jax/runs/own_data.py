"""``train --data``: prepares a user's files in the workdir, once, and checks them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_collections

from retina_jax.config.shell import field_flag
from retina_jax.config.values import changed_config
from retina_jax.data.data_set import data_sets
from retina_jax.errors import UserError, check_local
from retina_jax.files import write_json
from retina_jax.prepare.build import Prepared, prepare
from retina_jax.prepare.handling import Handling, RecordError
from retina_jax.prepare.own_files import OwnFiles, digest_of, open_source, recognise
from retina_jax.prepare.writer import RecordsError
from retina_jax.progress import Reporter
from retina_jax.training.workdir import workdir_at

FOLDER = "data"
"""In the workdir."""
SOURCE = "source.json"
"""In `FOLDER`: where the data come from, and the digest of their files."""
_NAME = "own"


def with_own_data(
    config: ml_collections.ConfigDict,
    data: str,
    workdir: str | Path,
    handling: Handling | None = None,
    report: Reporter | None = None,
) -> ml_collections.ConfigDict:
    """``config`` for the data set that ``data`` contains, prepared in ``workdir``/data if needed.

    Raises `UserError` for files that are no data set, that have changed since they were prepared,
    or that have unusable records which ``handling`` does not leave out.
    """
    report, handling = report or Reporter(), handling or Handling()
    check_local(str(workdir), "--workdir")
    found = recognise(data)
    report.say(f"1/4 prepare: {data} is {_described(found)}")
    if found.kind == "prepared":
        fields = _fields_of(found.root)
    else:
        fields = _prepared(found, data, workdir_at(workdir) / FOLDER, handling, report)
    taken = {name: value for name, value in fields.items() if name not in _split_flags(config)}
    return changed_config(config, taken)


def _described(found: OwnFiles) -> str:
    if found.kind == "prepared":
        return f"a prepared data set ({found.why})"
    return f"a {found.kind.upper()} data set ({found.why})"


def _split_flags(config: ml_collections.ConfigDict) -> set[str]:
    """Splits that the user names and that differ from the defaults."""
    named = {"data.train_split": "train", "data.eval_split": "validation"}
    return {name for name, usual in named.items() if config.data[name[5:]] != usual}


def _fields_of(folder: Path) -> dict[str, Any]:
    """The fields that open the only data set in a folder."""
    import tensorflow_datasets as tfds

    there = data_sets(folder)
    if len(there) != 1:
        raise UserError(
            f"--data={folder} contains {len(there)} data sets ({', '.join(there)}); set "
            f"{field_flag('data.dir', str(folder))} --config.data.name=NAME instead"
        )
    ((name, directory),) = there.items()
    splits = tuple(tfds.builder_from_directory(str(directory)).info.splits)
    fields = Prepared(directory, splits, 0).fields()
    return fields | {"data.dir": str(folder.absolute()), "data.name": name}


def _prepared(
    found: OwnFiles, data: str, folder: Path, handling: Handling, report: Reporter
) -> dict[str, Any]:
    """Prepares the files in ``folder``, or finds them prepared by an earlier call."""
    try:
        source, line = open_source(found, handling.skip_bad)
        digest, place = digest_of(source), folder / SOURCE
        if data_sets(folder):
            _check_same(place, digest, data, folder)
            report.say(f"  prepared before in {folder}")
        else:
            report.say(f"  {line}")
            folder.mkdir(parents=True, exist_ok=True)
            write_json(place, {"data": str(Path(data).expanduser().absolute()), "digest": digest})
            made = prepare(source, folder, _NAME, report, handling)
            if made.left_out:
                listed = made.directory / "left_out.txt"
                report.note(f"records left out: {made.left_out} (listed in {listed})", "warning")
    except (RecordError, RecordsError) as error:
        if handling.skip_bad:
            raise
        advice = "correct them, or set --on-bad=skip to leave out such records"
        raise UserError(f"{error}; {advice}", error.details) from None
    return _fields_of(folder)


def _check_same(place: Path, digest: str, data: str, folder: Path) -> None:
    try:
        known = json.loads(place.read_text()).get("digest")
    except (OSError, ValueError, AttributeError):
        known = None
    if known != digest:
        raise UserError(
            f"--data={data} has changed since {folder} was prepared from it; use another --workdir "
            f"to train on the changed data, or replace --data with "
            f"{field_flag('data.dir', str(folder))} to go on with the former"
        )
