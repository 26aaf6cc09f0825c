"""The progress of runs, from the files in their workdirs; does not import JAX, writes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import time
from pathlib import Path
from typing import Any

from retina_jax.errors import UserError
from retina_jax.files import is_address, modified, open_path
from retina_jax.training import error_log, lease_file
from retina_jax.training.history import History

_TAIL = 1 << 16  # bytes at the end of a log, which may be large


@dataclasses.dataclass(frozen=True)
class Status:
    """The progress of a run; None for what is not known yet."""

    folder: Path
    state: str
    """finished, stopped early, running on HOST, stopped, …"""
    running: bool
    steps: int
    """Number of steps of the whole run."""
    step: int | None
    """Of the last line of the log, or of the newest checkpoint."""
    loss: float | None
    images_per_second: float | None
    seconds_left: float | None
    """At the speed of the last log line, without evaluations; None if the run is not running."""
    checkpoint: int | None
    """Step of the newest."""
    last: tuple[int, float | None] | None
    """Step and AP of the last evaluation."""
    best: tuple[int, float] | None
    error: str
    """The last error and its age; "" if there is none."""


def status_of(workdir: str | Path) -> Status:
    """Reads the files of a run, even a running one. Raises `UserError` without a config.json."""
    folder = open_path(workdir, "RUN")
    if not is_address(folder):
        folder = folder.absolute()
    config = _json(folder / "config.json")
    train = config.get("train")
    if not isinstance(train, dict) or "steps" not in train:
        raise UserError(
            f"{workdir} is not the workdir of a run: it has no config.json; name one "
            "that train wrote"
        )
    chosen = config.get("resolved", {}).get("fitted", {})
    steps = int(chosen.get("train.steps", train["steps"]))
    batch_size = int(train.get("batch_size", 16))
    entry = _last(folder / "metrics.jsonl")
    checkpoint = max(_numbers(folder / "checkpoints"), default=None)
    step = max((s for s in (entry.get("step"), checkpoint) if s is not None), default=None)
    evaluations = _evaluations(folder)
    last = evaluations[-1] if evaluations else None
    scored = [(s, ap) for s, ap in evaluations if ap is not None]
    done = step is not None and step >= steps and last is not None and last[0] >= steps
    end = "finished" if done else _early_end(config, checkpoint, scored)
    state, running = _state(folder, end, step)
    rate = entry.get("images_per_second")
    left = None
    if running and rate and step is not None and step < steps:
        left = (steps - step) * batch_size / rate
    return Status(
        folder=folder,
        state=state,
        running=running,
        steps=steps,
        step=step,
        loss=entry.get("loss"),
        images_per_second=rate,
        seconds_left=left,
        checkpoint=checkpoint,
        last=last,
        best=max(scored, key=lambda pair: pair[1], default=None),
        error=_error(folder),
    )


def _early_end(
    config: dict[str, Any], checkpoint: int | None, scored: list[tuple[int, float]]
) -> str:
    """How ``train.patience`` ended a run, from what its loop decides by; "" if it did not."""
    every = int((config.get("eval") or {}).get("every", 0))
    known = [(s, ap) for s, ap in scored if every and s % every == 0 and s <= (checkpoint or 0)]
    history = History(tuple(known))
    if not history.ends(int(config["train"].get("patience", 0))):
        return ""
    return f"stopped early, no better AP since step {history.best[0]:,}"


def _state(folder: Path, end: str, step: int | None) -> tuple[str, bool]:
    """The state in words, and whether the run is running; ``end``: how it ended, if it did."""
    path = folder / lease_file.FILE
    renewed = modified(path)
    if renewed is None:
        if end:
            return end, False
        return ("not started" if step is None else "stopped"), False
    age = time.time() - renewed
    holder = _json(path)
    who = f"{holder.get('host', '?')}, process {holder.get('pid', '?')}"
    if lease_file.has_ended(holder):
        return f"killed ({who})", False
    if age > lease_file.STALE_AFTER:
        return f"no heartbeat for {duration(age)} ({who})", False
    return f"running on {who}", True


def _evaluations(folder: Path) -> list[tuple[int, float | None]]:
    """Step and AP of the run's own evaluations, by step."""
    found = []
    for step in sorted(_numbers(folder / "eval")):
        metrics = _json(folder / "eval" / str(step) / "metrics.json")
        if metrics:
            ap = metrics.get("AP")
            found.append((step, None if ap is None or ap < 0 else float(ap)))
    return found


def _error(folder: Path) -> str:
    entry = _last(folder / error_log.FILE)
    if "error" not in entry:
        return ""
    with contextlib.suppress(KeyError, ValueError, TypeError):
        then = datetime.datetime.fromisoformat(entry["time"]).timestamp()
        return f"{duration(time.time() - then)} ago: {entry['error']}"
    return str(entry["error"])


def duration(seconds: float) -> str:
    """ "45 s", "12 min", "3.5 h" or "2.1 days"."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def _numbers(folder: Path) -> list[int]:
    """The names in a folder that are numbers."""
    try:
        return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    except OSError:
        return []


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; {} if there is none, or it is being written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _last(path: Path) -> dict[str, Any]:
    """The last complete line of a log; {} without one."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                return value
    return {}
