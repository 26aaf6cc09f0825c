"""Score a checkpoint of a run with COCO's metrics.

usage: retina-jax evaluate --config=experiments/shapes.py --workdir=DIR
           [--config.eval.checkpoint=best] [--config.path.to.field=value ...]

Writes DIR/eval/STEP/: metrics.json, detections.json (COCO results) and detections.png.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from retina_jax.config.flags import Flag, parse

if TYPE_CHECKING:
    import ml_collections
    from rich.console import Console

WORKDIR = Flag("workdir", "folder of the run", example="runs/first")


def run(config: ml_collections.ConfigDict, workdir: str, console: Console) -> int:
    """Evaluates, then prints the table; returns the exit code."""
    from retina_jax.evaluation.report import print_table
    from retina_jax.progress import Reporter
    from retina_jax.runs.evaluate import evaluate

    result = evaluate(config, workdir, Reporter(console))
    if result.signal:
        console.print(f"stopped by {result.signal.name}: nothing was written")
        return 128 + result.signal
    print_table(console, result.metrics)
    console.print(f"all of it: {result.folder}")
    return 0


def main(argv: list[str]) -> int:
    parsed = parse(argv, __doc__, [WORKDIR])
    if parsed is None:
        return 0
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    return run(parsed.config, parsed.flags.workdir, console)
