"""Compares evaluations of runs on the same images, with bootstrap confidence intervals."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from retina_jax.config.values import comparable, differences, tuples
from retina_jax.data.data_set import Split, open_split
from retina_jax.errors import UserError
from retina_jax.evaluation import coco
from retina_jax.evaluation.matching import AREAS, IOUS, average_precisions, match
from retina_jax.evaluation.report_errors import ImageErrors, errors_of
from retina_jax.evaluation.report_numbers import mean
from retina_jax.prepare.shapes import open_data_set
from retina_jax.runs.evaluations import evaluation_folder
from retina_jax.training.workdir import CONFIG, read_classes, read_config, read_resolved, workdir_at

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
CONFIDENCE = 0.95
MOST_CHANGED = 20
_SAMPLES_AT_ONCE = 50


@dataclasses.dataclass(frozen=True)
class Difference:
    """One metric of two runs; None without ground truth."""

    name: str
    before: float | None
    now: float | None
    interval: tuple[float, float] | None
    """Of ``now - before``: `CONFIDENCE`, percentiles over resampled images."""

    @property
    def change(self) -> float | None:
        known = self.before is not None and self.now is not None
        return self.now - self.before if known else None

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One evaluation to compare."""

    name: str
    folder: Path
    workdir: Path
    detections: list[dict[str, Any]]
    errors: list[ImageErrors]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A run against the first one."""

    before: Evaluated
    now: Evaluated
    metrics: list[Difference]
    classes: list[Difference]
    """AP by class."""
    images: list[tuple[int, float, float]]
    """The images whose error changed most: row of the split, `ImageErrors.error` in both runs."""
    fields: dict[str, tuple[Any, Any]]
    """Config fields that differ."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """The result of `compare`."""

    split: Split
    comparisons: list[Comparison]
    samples: int


def compare(
    runs: Sequence[str | Path],
    samples: int = 1000,
    seed: int = 0,
    advance: Callable[[int], None] = lambda samples: None,
) -> Compared:
    """Compares the last evaluation of each run with that of the first.

    Images are resampled ``samples`` times, the same ones for all runs.

    Args:
      runs: workdirs, or folders of evaluations (``RUN/eval/STEP``).
      advance: called with the number of samples that were scored, of all runs
        (``len(runs) * samples`` in the end).

    Raises `UserError` if the evaluations are not of the same images and classes.
    """
    if len(runs) < 2:
        raise UserError("compare needs at least two runs; name their workdirs")
    if samples < 1:
        raise UserError(f"--samples={samples} must be 1 or more; set --samples=1000")
    folders = [_evaluation(run) for run in runs]
    split = _common_split([workdir for _, workdir in folders])
    truth = coco.ground_truth(split)
    names = _names(folders)
    evaluated = [
        _read(name, folder, workdir, truth)
        for name, (folder, workdir) in zip(names, folders, strict=True)
    ]
    rng = np.random.default_rng(seed)
    images = len(split)
    weights = np.ones((samples + 1, images), np.int32)  # the first counts each image once
    weights[1:] = rng.multinomial(images, np.full(images, 1 / images), samples)
    limit = read_config(folders[0][1]).eval.limits[-1]
    scores = [_resampled(one.detections, truth, weights, limit, advance) for one in evaluated]
    first, first_scores = evaluated[0], scores[0]
    return Compared(
        split,
        [
            _comparison(first, one, first_scores, own, split)
            for one, own in zip(evaluated[1:], scores[1:], strict=True)
        ],
        samples,
    )


def _evaluation(run: str | Path) -> tuple[Path, Path]:
    """The folders of an evaluation and of its run."""
    run = workdir_at(run, "RUN")
    if (run / "detections.json").exists():
        return run, run.parent.parent
    return evaluation_folder(run), run


def _names(folders: Sequence[tuple[Path, Path]]) -> list[str]:
    """Short names that distinguish the evaluations."""
    short = [f"{workdir.name}/{folder.name}" for folder, workdir in folders]
    if len(set(short)) == len(short):
        return short
    return [f"{workdir}/{folder.name}" for folder, workdir in folders]


def _common_split(workdirs: Sequence[Path]) -> Split:
    """The evaluation split of all runs. Raises `UserError` where the runs do not agree."""
    config = read_config(workdirs[0])
    name = config.data.eval_split
    first, data = read_classes(workdirs[0]), _fingerprints(workdirs[0], name)
    for workdir in workdirs[1:]:
        classes = read_classes(workdir)
        difference = first.difference(classes) if first and classes else ""
        if difference:
            raise UserError(
                f"{workdirs[0]} and {workdir} have different classes: {difference}; compare runs "
                "on the same data set"
            )
        own, split = _fingerprints(workdir, name), read_config(workdir).data.eval_split
        changed = [what for what in data if what in own and own[what] != data[what]]
        if split != name or changed:
            what = f"the {' and '.join(changed)} of {name}" if changed else f"{name} and {split}"
            raise UserError(
                f"{workdirs[0]} and {workdir} were evaluated on different images ({what} differ); "
                "evaluate both on the same split"
            )
    directory = open_data_set(config.data.dir, config.data.name)
    return open_split(directory, name, config.data.labels)


def _fingerprints(workdir: Path, split: str) -> dict[str, str]:
    return (read_resolved(workdir).get("data") or {}).get(split) or {}


def _read(name: str, folder: Path, workdir: Path, truth: dict[str, Any]) -> Evaluated:
    path = folder / "detections.json"
    try:
        detections = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); run the evaluate command again"
        ) from None
    images = {image["id"] for image in truth["images"]}
    classes = {c["id"] for c in truth["categories"]}
    odd = [d for d in detections if d["image_id"] not in images or d["category_id"] not in classes]
    if odd:
        raise UserError(
            f"{path} has detections of image {odd[0]['image_id']} and class "
            f"{odd[0]['category_id']}, which the data set of the first run does not have; compare "
            "evaluations of the same split"
        )
    errors = errors_of(truth, detections, coco.evaluate_boxes(truth, detections))
    return Evaluated(name, folder, workdir, detections, errors)


def _resampled(
    detections: list[dict[str, Any]],
    truth: dict[str, Any],
    weights: np.ndarray,
    limit: int,
    advance: Callable[[int], None],
) -> np.ndarray:
    """AP for each row of ``weights``, ``[n, classes, 4, 10]``; classes in threads."""
    matches = match(truth, detections, limit)
    classes = len(truth["categories"])
    scores = np.full((len(weights), classes, len(AREAS), len(IOUS)), np.nan, np.float32)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(weights), _SAMPLES_AT_ONCE):
            part = slice(start, start + _SAMPLES_AT_ONCE)
            rows = weights[part]
            for k, own in enumerate(
                pool.map(lambda k, rows=rows: average_precisions(matches, rows, k), range(classes))
            ):
                scores[part, k] = own
            advance(len(rows) - (start == 0))
    return scores


def _comparison(
    before: Evaluated, now: Evaluated, old: np.ndarray, new: np.ndarray, split: Split
) -> Comparison:
    fifty, seventy_five = (int(np.flatnonzero(np.isclose(IOUS, v))[0]) for v in (0.5, 0.75))
    parts = {
        "AP": np.s_[:, :, 0, :], "AP50": np.s_[:, :, 0, [fifty]],
        "AP75": np.s_[:, :, 0, [seventy_five]], "APs": np.s_[:, :, 1, :],
        "APm": np.s_[:, :, 2, :], "APl": np.s_[:, :, 3, :],
    }  # fmt: skip
    metrics = [
        difference(name, mean(old[parts[name]], (1, 2)), mean(new[parts[name]], (1, 2)))
        for name in METRICS
    ]
    classes = [
        difference(name, mean(old[:, k, 0], 1), mean(new[:, k, 0], 1))
        for k, name in enumerate(split.class_names)
    ]
    pairs = [(o.error, n.error) for o, n in zip(before.errors, now.errors, strict=True)]
    order = np.argsort([-abs(n - o) for o, n in pairs], kind="stable")[:MOST_CHANGED]
    changed = [(int(row), *pairs[row]) for row in order if pairs[row][0] != pairs[row][1]]
    contents = [comparable(_json(one.workdir / CONFIG)) for one in (before, now)]
    return Comparison(before, now, metrics, classes, changed, differences(*contents))


def difference(name: str, before: np.ndarray, now: np.ndarray) -> Difference:
    """The first value of each run, and the interval from the paired differences of the others."""
    changes = (now - before)[1:]
    changes = changes[~np.isnan(changes)]
    interval = None
    if len(changes):
        edge = (1 - CONFIDENCE) / 2
        low, high = np.quantile(changes, [edge, 1 - edge])
        interval = float(low), float(high)
    values = (None if np.isnan(v[0]) else float(v[0]) for v in (before, now))
    return Difference(name, *values, interval)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def field_rows(fields: dict[str, tuple[Any, Any]]) -> list[list[str]]:
    """Name and both values of config fields, as text."""
    return [[name, str(tuples(a)), str(tuples(b))] for name, (a, b) in fields.items()]
