"""Evaluate a checkpoint of a run with the COCO metrics.

usage: retina-jax evaluate --workdir=DIR [--config.eval.checkpoint=best]
           [--config=experiments/shapes.py] [--config.path.to.field=value ...]

Uses the run's own config unless --config is given. Writes metrics.json, detections.json (COCO
results), detections.png and report.html to DIR/eval/STEP. An evaluation on other data or with other
config values writes to a separate folder whose name lists the differences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from retina_jax.config.flags import PROCESSES, Flag, parse
from retina_jax.jobs import config_of_run, on_all_hosts

if TYPE_CHECKING:
    import ml_collections
    from rich.console import Console

WORKDIR = Flag("workdir", "folder of the run", example="runs/first")


def run(config: ml_collections.ConfigDict, workdir: str, console: Console) -> int:
    """Evaluates, then prints the table; returns the exit code."""
    from retina_jax.evaluation.report import print_table
    from retina_jax.progress import Reporter
    from retina_jax.runs.evaluate import evaluate

    report = Reporter(console)
    result = evaluate(config, workdir, report)
    if result.signal:
        report.say(f"stopped by {result.signal.name}; nothing was written")
        return 128 + result.signal
    print_table(console, result.metrics)
    report.say(f"results: {result.folder}")
    return 0


def main(argv: list[str]) -> int:
    parsed = parse(argv, __doc__, [WORKDIR, *PROCESSES], config_of_run=config_of_run)
    if parsed is None:
        return 0
    with on_all_hosts(parsed) as console:
        return run(parsed.config, parsed.flags.workdir, console)
