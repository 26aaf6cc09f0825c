"""Progress reports of long-running work: lines, notes and a progress bar."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter:
    """Prints reports to a console, or discards them."""

    def __init__(self, console: Console | None = None, prefix: str = ""):
        """``prefix``: begins every line and note, such as ``"seed 1: "``."""
        self._console = console or Console(quiet=True)
        self._prefix = prefix

    @classmethod
    def on_stderr(cls) -> Reporter:
        """Reports to stderr; stdout stays free for results."""
        return cls(Console(stderr=True, highlight=False, soft_wrap=True))

    def prefixed(self, prefix: str) -> Reporter:
        """Reports to the same console, with a prefix."""
        return Reporter(self._console, prefix)

    def say(self, line: str) -> None:
        self._console.print(self._prefix + line, markup=False)

    def note(self, line: str, label: str = "note") -> None:
        """Prints a highlighted line."""
        self._console.print(f"[yellow]{label}:[/] {escape(self._prefix + line)}")

    def progress(self, title: str, total: int | None, done: int = 0) -> ProgressBar:
        """``total``: None if it is not known."""
        return ProgressBar(self._console, title, total, done)


class ProgressBar:
    """A progress bar on a terminal; elsewhere, at most one line per minute."""

    QUIET_SECONDS = 60.0

    def __init__(self, console: Console, title: str, total: int | None, done: int = 0):
        self._console = console
        self._title = title
        self._total = total
        self._first = self._done = done
        self._started = self._spoken = time.monotonic()
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
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
        """Advances by ``by``; ``note`` is shown next to the bar until the next note."""
        self._done += by
        if self._bar:
            fields = {} if note is None else {"note": note}
            self._bar.update(self._task, completed=self._done, **fields)
        elif note and time.monotonic() - self._spoken > self.QUIET_SECONDS:
            self._spoken = time.monotonic()
            rate = (self._done - self._first) / (self._spoken - self._started)
            of, left = "", ""
            if self._total is not None:
                seconds = (self._total - self._done) / rate if rate else 0.0
                of, left = f"/{self._total}", f", {seconds / 60:.0f} min left"
            self._console.print(f"{self._title} {self._done}{of} {note}{left}", markup=False)
