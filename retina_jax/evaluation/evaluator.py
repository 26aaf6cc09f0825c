"""Evaluates a network on a split: detects every image once, computes metrics, writes files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from retina_jax import parallel
from retina_jax.config.shell import field_flag
from retina_jax.data.data_set import Split
from retina_jax.data.loader import EvaluationLoader
from retina_jax.errors import EvaluationError
from retina_jax.evaluation import coco
from retina_jax.evaluation.detect import make_detect
from retina_jax.evaluation.pictures import draw_pairs, write_sheet
from retina_jax.evaluation.report_writer import ReportWriter
from retina_jax.files import write_json
from retina_jax.models.retinanet import RetinaNet
from retina_jax.progress import Reporter
from retina_jax.types import Batch, Detections

_SCORING_WITHIN = 3600.0  # seconds that the other processes wait for the one that scores
_SHOWN = 8
"""Largest number of `Evaluator.drawn`."""
_GATHERED_AT_ONCE = 1024  # images of each process


class Evaluator:
    """Evaluates a model on one split; compiles once per bucket, for any number of calls."""

    def __init__(
        self,
        model: RetinaNet,
        split: Split,
        config: ml_collections.ConfigDict,
        devices: parallel.Devices,
        report: Reporter | None = None,
    ):
        """``report`` gets a note if a page could not be written."""
        self._config = config
        self._report = report or Reporter()
        self._split = split
        self._detect = make_detect(model, config, devices)
        self._loader = EvaluationLoader(
            split, config, parallel.process_index(), parallel.process_count()
        )
        self._truth: dict[str, Any] | None = None
        self._drawn: list[tuple[int, Image.Image]] = []
        self._pages = ReportWriter(split, self._report.note)

    def __len__(self) -> int:
        """Number of images in the split."""
        return len(self._split)

    def notices(self) -> list[str]:
        """Warnings where limits of the metrics exclude objects; reads the ground truth."""
        limit, max_detections = self._config.eval.limits[-1], self._config.eval.max_detections
        images, most = coco.beyond_limit(self._ground_truth(), limit)
        lines = []
        if images:
            lines.append(
                f"images with more than {limit} objects of one class (up to {most}): {images} of "
                f"{len(self._split)}; the COCO metrics count only {limit} detections per class and "
                "image, so even a perfect detector scores below 1; set "
                f"{field_flag('eval.limits', (1, 10, most))}"
            )
        if most > max_detections:
            lines.append(
                f"eval.max_detections={max_detections} is too small for an image with {most} "
                f"objects of one class; set --config.eval.max_detections={most}"
            )
        return lines

    def _ground_truth(self) -> dict[str, Any]:
        if self._truth is None:
            self._truth = coco.ground_truth(self._split)
        return self._truth

    def detect(
        self,
        variables: Any,
        advance: Callable[[], None] = lambda: None,
        stops: Callable[[int], bool] = lambda batch: False,
    ) -> list[dict[str, Any]] | None:
        """COCO results of every image of the split, by row; None if it was stopped.

        Each process detects its rows of every batch; all get the results of all.

        Args:
          advance: called after each image of this process.
          stops: whether to stop before a batch, by number; called in order, and equally in all
            processes.

        Raises `EvaluationError` in every process if one of them failed, or unless the streams
        contain every row exactly once.
        """
        found: list[tuple[int, Detections]] = []
        stopped = False

        def batches() -> Iterator[Batch]:
            nonlocal stopped
            for number, batch in enumerate(self._loader):
                stopped = stopped or stops(number)
                if stopped:
                    return
                yield batch

        with _failing_together("detecting"):
            for row, detections in self._detect(variables, batches()):
                found.append((row, detections))
                advance()
        if stopped:
            return None
        found = _gathered(found, self._loader, self._config.eval.max_detections)
        split, by_row = self._split, dict(found)
        if len(found) != len(split) or not np.array_equal(sorted(by_row), np.arange(len(split))):
            raise EvaluationError(
                f"the evaluation saw {len(by_row)} of the {len(split)} images of {split.label()}, "
                f"with {len(found)} results"
            )
        return [
            result
            for row in range(len(split))
            for result in coco.results(int(split.image_ids[row]), by_row[row], split.category_ids)
        ]

    def run(
        self,
        variables: Any,
        step: int,
        folder: Path,
        advance: Callable[[], None] = lambda: None,
        stops: Callable[[int], bool] = lambda batch: False,
    ) -> dict[str, Any] | None:
        """Evaluates; one process writes detections.json, metrics.json and detections.png.

        With ``eval.report``, a thread then writes report.html; `finish_report` waits for it.
        Returns the metrics in every process. If stopped (`detect`), writes nothing; returns None.
        Raises `EvaluationError` in every process if one of them failed.
        """
        detections = self.detect(variables, advance, stops)
        if detections is None:
            return None
        metrics: dict[str, Any] = {}
        with _failing_together("scoring"):
            if parallel.is_main():
                metrics = self._score(detections, step, folder)
        if parallel.process_count() == 1:
            return metrics
        return json.loads(parallel.group.tell("metrics", json.dumps(metrics)))

    def _score(self, detections: list[dict[str, Any]], step: int, folder: Path) -> dict[str, Any]:
        options = self._config.eval
        truth = self._ground_truth()
        evaluation = coco.evaluate_boxes(truth, detections, options.engine, options.limits)
        metrics = coco.summarize(evaluation, truth, options.limits)
        metrics |= {"step": step, "images": len(self._split), "detections": len(detections)}
        metrics["limits"] = list(options.limits)
        write_json(folder / "detections.json", detections)
        if options.pictures:
            note = self._report.note
            pairs = draw_pairs(self._split, detections, options.pictures, note=note)
            write_sheet(pairs, self._split.class_names, folder / "detections.png")
            shown = np.linspace(0, len(pairs) - 1, min(len(pairs), _SHOWN)).round()
            self._drawn = [pairs[int(i)] for i in shown]
        write_json(folder / "metrics.json", metrics)  # last: marks the evaluation as complete
        if options.report:
            own = evaluation if options.engine == "hotcoco" else None
            self._pages.start(folder, truth, detections, metrics, own)
        return metrics

    def drawn(self) -> list[tuple[int, Image.Image]]:
        """Images of the last `run`, by id, with their ground truth and detections drawn.

        At most eight, the same at each evaluation; none if ``eval.pictures`` is 0 or this process
        does not score.
        """
        return self._drawn

    def finish_report(self, stops: Callable[[], bool] = lambda: False) -> None:
        """Waits for the report of the last `run`, if there is one, until ``stops()`` is true."""
        if self._pages.pending:
            with self._report.progress("writing the report", self._pages.parts) as bar:
                self._pages.wait(lambda more: bar.advance(by=more), stops)

    def abandon_report(self) -> None:
        """Abandons an unfinished report; call it before the program ends."""
        self._pages.abandon()


@contextlib.contextmanager
def _failing_together(what: str) -> Iterator[None]:
    """Raises `EvaluationError` in every process if the block fails in one of them."""
    problem, cause = "", None
    try:
        yield
    except Exception as error:
        if parallel.process_count() == 1:
            raise
        problem, cause = f"{type(error).__name__}: {error}", error
    problems = parallel.group.exchange(f"evaluation {what}", problem, _SCORING_WITHIN)
    failed = [f"{parallel.group.name(i)}: {text}" for i, text in enumerate(problems) if text]
    if failed:
        raise EvaluationError("; ".join(failed)) from cause


def _gathered(
    found: list[tuple[int, Detections]], loader: EvaluationLoader, most: int
) -> list[tuple[int, Detections]]:
    """``(row, detections)`` of all processes; at most ``most`` boxes per image.

    The exchanged data has the same size in every process, as the devices' collectives require.
    """
    if parallel.process_count() == 1:
        return found
    rows = loader.rows_per_process
    images = {
        "row": np.full(rows, -1, np.int64),
        "count": np.zeros(rows, np.int32),
        "boxes": np.zeros((rows, most, 4), np.float64),
        "scores": np.zeros((rows, most), np.float32),
        "labels": np.zeros((rows, most), np.int32),
    }
    for i, (row, detections) in enumerate(found):
        count = len(detections.scores)
        images["row"][i], images["count"][i] = row, count
        for name in ("boxes", "scores", "labels"):
            images[name][i, :count] = getattr(detections, name)
    every = []
    for start in range(0, rows, _GATHERED_AT_ONCE):
        part = {name: values[start : start + _GATHERED_AT_ONCE] for name, values in images.items()}
        for of_process in parallel.gather(part):
            for i in np.flatnonzero(of_process["row"] >= 0):
                count = of_process["count"][i]
                values = {n: of_process[n][i, :count] for n in ("boxes", "scores", "labels")}
                every.append((int(of_process["row"][i]), Detections(**values)))
    return every
