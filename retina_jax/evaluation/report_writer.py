"""Writes the report of an evaluation while training continues."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from retina_jax.data.data_set import Split
from retina_jax.evaluation.coco import LIMITS, evaluate_boxes
from retina_jax.evaluation.report_errors import errors_of
from retina_jax.evaluation.report_gallery import MOST_IMAGES, gallery
from retina_jax.evaluation.report_numbers import numbers_of
from retina_jax.evaluation.report_page import Curves, page
from retina_jax.files import write_text

FILE = "report.html"
_THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))  # training goes on meanwhile
_ASKS_EVERY = 0.2  # seconds


class _Abandoned(Exception):
    """The program ends before the report is complete."""


def read_curves(workdir: Path) -> Curves:
    """What a run has logged; unreadable lines and files are skipped."""
    log, evaluations = [], []
    path = workdir / "metrics.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = _parsed(line)
            if "step" in entry:
                log.append(entry)
    for path in workdir.glob("eval/*/metrics.json"):
        entry = _parsed(path.read_text(encoding="utf-8")) if path.parent.name.isdigit() else {}
        if "step" in entry:
            evaluations.append(entry)
    return Curves(log, sorted(evaluations, key=lambda entry: entry["step"]))


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def write_report(
    folder: Path,
    split: Split,
    truth: dict[str, Any],
    detections: list[dict[str, Any]],
    metrics: dict[str, Any],
    evaluation: Any = None,
    advance: Callable[[], None] = lambda: None,
) -> Path:
    """Writes ``report.html`` to the folder of an evaluation (``RUN/eval/STEP``).

    Args:
      truth, detections: COCO's, of all images of ``split``.
      metrics: as in metrics.json.
      evaluation: hotcoco's, from `coco.evaluate_boxes`; None: evaluates again.
      advance: called after each image of the gallery.
    """
    if evaluation is None:
        evaluation = evaluate_boxes(truth, detections, "hotcoco", metrics.get("limits", LIMITS))
    errors = errors_of(truth, detections, evaluation)
    advance()
    numbers = numbers_of(truth, errors, evaluation)
    advance()
    run = folder.parent.parent
    title = f"{run.name}, {folder.name}" if folder.parent.name == "eval" else folder.name
    images = gallery(split, errors, advance, _THREADS)
    content = page(title, numbers, metrics, read_curves(run), images)
    write_text(folder / FILE, content)
    return folder / FILE


class ReportWriter:
    """Writes one report at a time in a thread, so that training does not wait for it."""

    def __init__(self, split: Split, note: Callable[[str], None]):
        """``note`` prints a line: why a report failed, or was not finished."""
        self._split = split
        self._note = note
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="report")
        self._future: Future[None] | None = None
        self._abandoned = threading.Event()
        self._done = 0

    def start(self, folder: Path, *arguments: Any) -> None:
        """Starts `write_report` in the thread, once the previous report is complete."""
        self.wait()
        self._done = 0
        self._future = self._pool.submit(self._write, folder, *arguments)

    @property
    def pending(self) -> bool:
        """Whether a report is being written."""
        return self._future is not None

    @property
    def parts(self) -> int:
        """Number of parts of a report: its numbers, twice, and the images that it shows."""
        return 2 + min(len(self._split), MOST_IMAGES)

    def wait(
        self,
        progress: Callable[[int], None] = lambda more: None,
        stops: Callable[[], bool] = lambda: False,
    ) -> None:
        """Waits until the report is written; ``progress`` gets the number of parts finished since.

        ``stops``: whether to stop waiting; called several times a second.
        """
        shown = 0
        while self._future is not None and not stops():
            ended = self._future.done()
            done = self._done
            progress(done - shown)
            shown = done
            if ended:
                self._future = None
            else:
                time.sleep(_ASKS_EVERY)

    def abandon(self) -> None:
        """Abandons an unfinished report; no file is written."""
        self._abandoned.set()
        self.wait()
        self._pool.shutdown()

    def _advance(self) -> None:
        if self._abandoned.is_set():
            raise _Abandoned
        self._done += 1

    def _write(self, folder: Path, *arguments: Any) -> None:
        try:
            write_report(folder, self._split, *arguments, advance=self._advance)
        except _Abandoned:
            self._note(f"{folder / FILE} is unfinished; retina-jax evaluate writes it")
        except Exception as error:  # a report is never worth a run
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._note(f"{folder / FILE} could not be written ({reason})")
