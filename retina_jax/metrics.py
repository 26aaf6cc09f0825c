"""Numbers of a run as it goes: ``metrics.jsonl``, TensorBoard events, a progress bar."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class MetricsLog:
    """One JSON object a log step in ``metrics.jsonl``, and the same to TensorBoard.

    Opened at ``first_step``, it drops what a killed run had logged beyond its last checkpoint.
    """

    def __init__(self, workdir: Path, first_step: int):
        from tensorboardX import SummaryWriter

        self._path = workdir / "metrics.jsonl"
        kept = []
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= first_step:
                        kept.append(line)
                except ValueError:
                    break  # a line that a kill cut short: nothing stands behind it
        partial = self._path.with_suffix(".partial")  # a kill here must not lose the log
        partial.write_text("".join(line + "\n" for line in kept))
        partial.rename(self._path)
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float | None]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.scalars("train", step, values)

    def scalars(self, group: str, step: int, values: dict[str, float | None]) -> None:
        for name, value in values.items():
            if value is None:
                continue
            self._events.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        self._events.close()


class ProgressBar:
    """A bar with rate and time left on a terminal; elsewhere a line a minute at the most."""

    QUIET_SECONDS = 60.0

    def __init__(self, console: Console, title: str, total: int, done: int = 0):
        self._console = console
        self._title = title
        self._total = total
        self._first = self._done = done
        self._started = self._spoken = time.monotonic()
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> ProgressBar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, note: str | None = None, by: int = 1) -> None:
        """``by`` more are done; ``note`` stays beside the bar until the next."""
        self._done += by
        if self._bar:
            fields = {} if note is None else {"note": note}
            self._bar.update(self._task, completed=self._done, **fields)
        elif note and time.monotonic() - self._spoken > self.QUIET_SECONDS:
            self._spoken = time.monotonic()
            rate = (self._done - self._first) / (self._spoken - self._started)
            left = (self._total - self._done) / rate if rate else 0.0
            self._console.print(
                f"{self._title} {self._done}/{self._total} {note} {left / 60:.0f} min left"
            )
