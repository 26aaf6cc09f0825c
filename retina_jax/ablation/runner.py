"""Runs the rows of studies as training runs; writes tables and figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import ml_collections

from retina_jax.ablation import figures, studies
from retina_jax.ablation.studies import Row
from retina_jax.ablation.table import (
    Outcome,
    check_made_with,
    comma_separated,
    markdown,
    scores_of,
    table_rows,
)
from retina_jax.config import leaves, resolve
from retina_jax.errors import NON_FINITE, UserError
from retina_jax.files import write_json, write_text
from retina_jax.ops.anchors import LEVELS, feature_grid
from retina_jax.progress import Reporter

SPEED = "speed.json"
"""File in a row's folder: the first line of the benchmark, and the fields of its config."""


class Finished(Protocol):
    """The result of a program, such as `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


Program = Callable[[Sequence[str], dict[str, object]], Finished]
"""Runs a command, given as words, with the user's config and the given fields."""


def own_fields(row: Row, seed: int) -> dict[str, object]:
    """The fields that a run of ``row`` sets in the user's config."""
    return {**row.fields, "seed": seed, "eval.pictures": 0}


def fields_of(config: ml_collections.ConfigDict, row: Row, seed: int) -> dict[str, object]:
    """All leaves of a run's config."""
    return {**leaves(config), **own_fields(row, seed)}


def run_one(
    row: Row, seed: int, folder: Path, config: ml_collections.ConfigDict, program: Program
) -> Outcome:
    """Trains a row with a seed, or reads the outcome of an earlier run."""
    fields = fields_of(config, row, seed)
    outcome = Outcome.read(folder, fields)
    if outcome:
        return outcome
    folder.mkdir(parents=True, exist_ok=True)
    done = program(["train", f"--workdir={folder}"], own_fields(row, seed))
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode == 0:
        outcome = Outcome(scores_of(folder, config.train.steps), fields=fields)
    elif done.returncode == NON_FINITE:
        outcome = Outcome(None, last, fields)
    else:
        raise UserError(f"{row.name}, seed {seed} failed with exit code {done.returncode}: {last}")
    outcome.write(folder)
    return outcome


def seconds_per_image(
    row: Row, config: ml_collections.ConfigDict, folder: Path, program: Program
) -> float:
    """Seconds per image of prediction, measured once and stored in ``folder``."""
    path, fields = folder / SPEED, fields_of(config, row, 0)
    if path.exists():
        measured = json.loads(path.read_text())
        check_made_with(path, measured.get("fields"), fields)
    else:
        done = program(["benchmark", "predict"], own_fields(row, 0))
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            raise UserError(f"{row.name}: cannot measure its speed: {last}")
        measured = {**json.loads(done.stdout.splitlines()[0]), "fields": fields}
        write_json(path, measured)
    return 1 / measured["images_per_second"]


def _columns(
    study: str, row: Row, config: ml_collections.ConfigDict, folder: Path, program: Program
) -> dict[str, str]:
    """Additional columns of a study's rows."""
    if study == "anchors":
        bucket = resolve(config).buckets[0]
        cells = sum(rows * cols for rows, cols in (feature_grid(bucket, lv) for lv in LEVELS))
        per_cell = len(row.fields["anchors.octaves"]) * len(row.fields["anchors.ratios"])
        return {"anchors": str(cells * per_cell)}
    if study == "speed":
        milliseconds = 1000 * seconds_per_image(row, config, folder, program)
        return {"ms per image": f"{milliseconds:.1f}"}
    return {}


def _chosen_rows(
    names: Sequence[str], only: str, config: ml_collections.ConfigDict
) -> dict[str, list[Row]]:
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise UserError(
            f"--only={only!r} is not a regular expression ({error}); escape special characters"
        ) from None
    chosen = {}
    for name in names:
        rows = [r for r in studies.study(name, config).rows if pattern.search(r.name)]
        if not rows:
            names_of_rows = ", ".join(r.name for r in studies.study(name, config).rows)
            raise UserError(
                f"--only={only!r} matches no row of --study={name}; rows: {names_of_rows}"
            )
        chosen[name] = rows
    return chosen


def ablate(
    config: ml_collections.ConfigDict,
    names: Sequence[str],
    out: Path,
    seeds: int,
    program: Program,
    only: str = "",
    report: Reporter | None = None,
) -> str:
    """Runs the studies ``names`` in ``out``; returns their tables as Markdown.

    Args:
      seeds: number of runs per row, with seeds 0, 1, …
      program: runs a command with config fields.
      only: regular expression that selects rows by name.

    Finished runs are reused. Raises `UserError` before the first run if ``out`` contains runs with
    other fields, and if a run fails for another reason than a non-finite loss.
    """
    report = report or Reporter()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out}: {error.strerror}; set --out to another folder") from None
    chosen = _chosen_rows(names, only, config)
    unique = {row.slug(): row for rows in chosen.values() for row in rows}
    outcomes: dict[str, list[Outcome]] = {slug: [] for slug in unique}
    for seed in range(seeds):  # report different flags before the first run, not after hours
        for slug, row in unique.items():
            Outcome.read(out / "runs" / slug / f"seed{seed}", fields_of(config, row, seed))
    with report.progress("runs", len(unique) * seeds) as bar:
        for seed in range(seeds):  # all rows with one seed before the next seed
            for slug, row in unique.items():
                folder = out / "runs" / slug / f"seed{seed}"
                outcome = run_one(row, seed, folder, config, program)
                outcomes[slug].append(outcome)
                bar.advance(f"{row.name}, seed {seed}")
                ap = outcome.stopped
                if outcome.scores:
                    value = outcome.scores["AP"]
                    ap = "AP –" if value is None else f"AP {value:.3f}"
                report.say(f"{row.name}, seed {seed}: {ap}")
    tables = []
    for name, rows in chosen.items():
        filled = [
            (row, outcomes[row.slug()],
             _columns(name, row, config, out / "runs" / row.slug(), program))
            for row in rows
        ]  # fmt: skip
        header, cells = table_rows(filled)
        tables.append(markdown(studies.study(name, config).title, header, cells))
        write_text(out / f"{name}.csv", comma_separated(header, cells))
        if name == "speed":
            figures.draw_speed(filled, out / "speed_against_ap.png")
    text = "\n".join(tables)
    write_text(out / "tables.md", text)
    figures.draw_losses(out / "loss_against_pt.png")
    for slug, row in unique.items():
        if row.fields.get("loss.gamma") == 2.0 and outcomes[slug][0].scores:
            run = out / "runs" / slug / "seed0"
            figures.draw_cumulative_loss(run, out / "cumulative_loss.png")
    return text
