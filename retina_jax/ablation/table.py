"""Tables of runs, as Markdown and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import statistics
from pathlib import Path

from retina_jax.ablation.studies import Row
from retina_jax.config.values import comparable, differences
from retina_jax.errors import UserError
from retina_jax.files import write_json

SCORES = ("AP", "AP50", "AP75")
STEP = "ms per step"
OUTCOME = "outcome.json"
"""File in the folder of a finished run: `Outcome` as JSON."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one run."""

    scores: dict[str, float] | None
    """`SCORES` and ``step_seconds``; None if the run stopped at a non-finite loss."""
    stopped: str = ""
    """The message of a run that stopped."""
    fields: dict[str, object] | None = None
    """Leaves of the run's config; None in files of earlier versions."""

    def write(self, folder: Path) -> None:
        write_json(folder / OUTCOME, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path, fields: dict[str, object]) -> Outcome | None:
        """The outcome of the run in ``folder``; None if it is not finished.

        ``fields`` are the leaves of its config. Raises `UserError` if the run was started with
        other fields.
        """
        path, begun = folder / OUTCOME, folder / "config.json"
        if path.exists():
            outcome = cls(**json.loads(path.read_text()))
            check_made_with(path, outcome.fields, fields)
            return outcome
        if begun.exists():
            check_made_with(folder, comparable(json.loads(begun.read_text())), fields)
        return None


def check_made_with(
    path: Path, before: dict[str, object] | None, fields: dict[str, object]
) -> None:
    """Raises `UserError` if ``path`` was made with other fields.

    Both are leaves of a config; ``before`` may come from JSON, or be None if the file does not
    store them. Fields added since had their defaults.
    """
    if before is None:
        raise UserError(f"{path} does not store the flags it was made with; set another --out")
    changed = differences(comparable(before), comparable(fields))
    if changed:
        listed = [f"{name}={was}, now {now}" for name, (was, now) in list(changed.items())[:3]]
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{path} was made with other flags ({'; '.join(listed)}{more}); set another --out"
        )


def scores_of(folder: Path, steps: int) -> dict[str, float]:
    """The last evaluation of a finished run, and its median seconds per step.

    If ``train.patience`` ended the run, its best evaluation.
    """
    path = folder / "eval" / str(steps) / "metrics.json"
    if path.exists():
        metrics = json.loads(path.read_text())
    else:
        own = [p for p in folder.glob("eval/*/metrics.json") if p.parent.name.isdigit()]
        evaluations = [json.loads(p.read_text()) for p in own]
        metrics = max(evaluations, key=lambda m: (m["AP"] or 0.0, m["step"]))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    batch = json.loads((folder / "config.json").read_text())["train"]["batch_size"]
    rates = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    seconds = batch / statistics.median(rates[1:] or rates)
    return {**{name: metrics[name] for name in SCORES}, "step_seconds": seconds}


def _mean_and_spread(values: list[float | None]) -> str:
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    mean = 100 * statistics.fmean(values)
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean:.1f}{spread}"


def table_rows(
    rows: list[tuple[Row, list[Outcome], dict[str, str]]],
) -> tuple[list[str], list[list[str]]]:
    """Header and cells; each row has its outcomes by seed, and additional columns.

    An additional column `STEP` replaces the time that the runs logged.
    """
    extra = list(dict.fromkeys(name for _, _, more in rows for name in more if name != STEP))
    header = ["setting", *SCORES, "runs", STEP, *extra, "paper's AP"]
    cells = []
    for row, outcomes, more in rows:
        done = [o.scores for o in outcomes if o.scores]
        stopped = len(outcomes) - len(done)
        scores = [_mean_and_spread([s[name] for s in done]) if done else "–" for name in SCORES]
        runs = f"{len(done)}" + (f", {stopped} diverged" if stopped else "")
        step = f"{1000 * statistics.median(s['step_seconds'] for s in done):.0f}" if done else "–"
        step = more.get(STEP, step)
        paper = "–" if row.paper is None else f"{row.paper:.1f}"
        cells.append([row.name, *scores, runs, step, *(more.get(n, "–") for n in extra), paper])
    return header, cells


def markdown(title: str, header: list[str], cells: list[list[str]]) -> str:
    """A table with its title, as Markdown."""
    lines = [f"### {title}", "", "| " + " | ".join(header) + " |"]
    lines.append("|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join(lines) + "\n"


def comma_separated(header: list[str], cells: list[list[str]]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *cells])
    return text.getvalue()
