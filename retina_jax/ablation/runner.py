"""Runs the rows of studies as training runs; writes tables and figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_collections

from retina_jax.ablation import figures, studies
from retina_jax.ablation.studies import Row
from retina_jax.ablation.table import (
    STEP,
    Outcome,
    check_made_with,
    comma_separated,
    markdown,
    scores_of,
    table_rows,
)
from retina_jax.config import leaves, resolve, validate
from retina_jax.config.values import changed_config
from retina_jax.errors import DONE, NON_FINITE, UserError
from retina_jax.files import write_json, write_text
from retina_jax.ops.anchors import LEVELS, feature_grid
from retina_jax.progress import Reporter
from retina_jax.training.seeds_loop import DIVERGED
from retina_jax.training.workdir import CONFIG, read_classes

MEASURED = {"predict": "speed.json", "step": "step.json"}
"""For each kind of benchmark, a file in a row's folder: its first line, and the fields of its
config."""


class Finished(Protocol):
    """The result of a program, such as `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


Program = Callable[[Sequence[str], dict[str, object]], Finished]
"""Runs a command, given as words, with the user's config and the given fields."""


def own_fields(row: Row, seed: int, data_seed: int | None = None) -> dict[str, object]:
    """The fields that a run of ``row`` sets in the user's config.

    ``data_seed``: set for runs that share their batches with those of other seeds.
    """
    own = {} if data_seed is None else {"data.seed": data_seed}
    return {**row.fields, **own, "seed": seed, "eval.pictures": 0}


def fields_of(
    config: ml_collections.ConfigDict, row: Row, seed: int, data_seed: int | None = None
) -> dict[str, object]:
    """All leaves of a run's config."""
    return {**leaves(config), **own_fields(row, seed, data_seed)}


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


def run_together(
    row: Row, seeds: int, folder: Path, config: ml_collections.ConfigDict, program: Program
) -> list[Outcome]:
    """Trains a row with all seeds in one program, or reads the outcomes of earlier runs."""
    data_seed = resolve(config).data_seed
    fields = [fields_of(config, row, seed, data_seed) for seed in range(seeds)]
    folders = [folder / f"seed{seed}" for seed in range(seeds)]
    outcomes = [Outcome.read(own, f) for own, f in zip(folders, fields, strict=True)]
    if all(outcomes):
        return outcomes
    shared = own_fields(row, 0, data_seed)
    done = program(["train", f"--workdir={folder}", f"--seeds={seeds}"], shared)
    if done.returncode not in (DONE, NON_FINITE):
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise UserError(f"{row.name} failed with exit code {done.returncode}: {last}")
    for seed, (own, outcome) in enumerate(zip(folders, outcomes, strict=True)):
        if outcome is None:
            diverged = own / DIVERGED
            if diverged.exists():
                message = json.loads(diverged.read_text())["message"]
                outcomes[seed] = Outcome(None, message, fields[seed])
            else:
                scores = scores_of(own, config.train.steps)
                outcomes[seed] = Outcome(scores, fields=fields[seed])
            outcomes[seed].write(own)
    return outcomes


def measured(
    kind: str, row: Row, config: ml_collections.ConfigDict, folder: Path, program: Program
) -> dict[str, Any]:
    """What a benchmark prints for a row's first bucket; run once and stored in ``folder``."""
    path, fields = folder / MEASURED[kind], fields_of(config, row, 0)
    if path.exists():
        figures = json.loads(path.read_text())
        check_made_with(path, figures.get("fields"), fields)
        return figures
    words, run = ["benchmark", kind], folder / "seed0"
    classes = read_classes(run) if (run / CONFIG).exists() else None
    if classes:
        words.append(f"--classes={len(classes.names)}")
    done = program(words, own_fields(row, 0))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise UserError(f"{row.name}: cannot measure its speed: {last}")
    figures = {**json.loads(done.stdout.splitlines()[0]), "fields": fields}
    write_json(path, figures)
    return figures


def _anchors(row: Row, config: ml_collections.ConfigDict) -> int:
    """Number of anchors of an image in the first bucket."""
    resolved = resolve(changed_config(config, row.fields))
    cells = sum(
        rows * cols for rows, cols in (feature_grid(resolved.buckets[0], n) for n in LEVELS)
    )
    return cells * resolved.anchors_per_place


def _columns(
    study: str, row: Row, config: ml_collections.ConfigDict, folder: Path, program: Program
) -> dict[str, str]:
    """Additional columns of a study's rows."""
    if study == "anchors":
        return {"anchors": str(_anchors(row, config))}
    if study == "speed":
        figures = measured("predict", row, config, folder, program)
        return {"ms per image": f"{1000 / figures['images_per_second']:.1f}"}
    if study == "modern":
        figures = measured("step", row, config, folder, program)
        return {
            STEP: f"{1000 * figures['batch_size'] / figures['images_per_second']:.1f}",
            "anchors": str(_anchors(row, config)),
            "memory, GiB": f"{figures['program_memory_gib']:.2f}",
        }
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
    together: bool = False,
) -> str:
    """Runs the studies ``names`` in ``out``; returns their tables as Markdown.

    Args:
      seeds: number of runs per row, with seeds 0, 1, …
      program: runs a command with config fields.
      only: regular expression that selects rows by name.
      together: trains the seeds of a row as one program, on the same batches.

    Finished runs are reused. Raises `UserError` before the first run if ``out`` contains runs with
    other fields, and if a run fails for another reason than a non-finite loss.
    """
    report = report or Reporter()
    if together and seeds < 2:
        raise UserError(
            f"--seeds={seeds} leaves no seeds to train together; set --seeds=2 or remove --together"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out}: {error.strerror}; set --out to another folder") from None
    chosen = _chosen_rows(names, only, config)
    unique = {row.slug(): row for rows in chosen.values() for row in rows}
    outcomes: dict[str, list[Outcome]] = {slug: [] for slug in unique}
    for row in unique.values():  # report fields that do not go together before the first run
        try:
            validate(changed_config(config, row.fields))
        except UserError as error:
            raise UserError(f"row {row.name!r}: {error}") from None
    data_seed = resolve(config).data_seed if together else None
    for seed in range(seeds):  # report different flags before the first run, not after hours
        for slug, row in unique.items():
            fields = fields_of(config, row, seed, data_seed)
            Outcome.read(out / "runs" / slug / f"seed{seed}", fields)
    with report.progress("runs", len(unique) * seeds) as bar:

        def add(row: Row, seed: int, outcome: Outcome) -> None:
            outcomes[row.slug()].append(outcome)
            bar.advance(f"{row.name}, seed {seed}")
            ap = outcome.stopped
            if outcome.scores:
                value = outcome.scores["AP"]
                ap = "AP –" if value is None else f"AP {value:.3f}"
            report.say(f"{row.name}, seed {seed}: {ap}")

        if together:
            for slug, row in unique.items():
                made = run_together(row, seeds, out / "runs" / slug, config, program)
                for seed, outcome in enumerate(made):
                    add(row, seed, outcome)
        else:
            for seed in range(seeds):  # all rows with one seed before the next seed
                for slug, row in unique.items():
                    folder = out / "runs" / slug / f"seed{seed}"
                    add(row, seed, run_one(row, seed, folder, config, program))
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
        if name == "modern":
            figures.draw_cost(filled, out / "ap_over_cost.png")
    text = "\n".join(tables)
    write_text(out / "tables.md", text)
    figures.draw_losses(out / "loss_against_pt.png")
    for slug, row in unique.items():
        if row.fields.get("loss.gamma") == 2.0 and outcomes[slug][0].scores:
            run = out / "runs" / slug / "seed0"
            figures.draw_cumulative_loss(run, out / "cumulative_loss.png")
    return text
