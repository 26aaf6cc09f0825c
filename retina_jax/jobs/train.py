"""Train RetinaNet and evaluate it periodically; run the same command to resume.

usage: retina-jax train --config=experiments/shapes.py --workdir=DIR
           [--config.path.to.field=value ...]

With --config.train.patience=3, training ends after three evaluations in a row without a new best
AP. The command then prints the results of the best checkpoint; run again, it trains no further
unless the patience is larger or 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from retina_jax.config.flags import PROCESSES, TRUST, Flag, parse
from retina_jax.errors import LEFT_OUT
from retina_jax.jobs import on_all_hosts
from retina_jax.training.profiled_steps import ProfiledSteps

if TYPE_CHECKING:
    import ml_collections
    from rich.console import Console

WORKDIR = Flag(
    "workdir", "folder of the run, or gs://BUCKET/FOLDER; created if missing", example="runs/first"
)

PROFILE = Flag(
    "profile", "record steps with jax.profiler in WORKDIR/profile: 10 for ten steps after warm-up, "
    "100:110 for steps 100 to 110; the recording moves to later steps to avoid compilation and "
    "evaluation"
)  # fmt: skip


def run(
    config: ml_collections.ConfigDict,
    workdir: str,
    console: Console,
    profile: ProfiledSteps | None = None,
    trust: bool = False,
) -> int:
    """Trains, then prints the table; returns the exit code."""
    from retina_jax.evaluation.report import print_table
    from retina_jax.progress import Reporter
    from retina_jax.runs.train import train

    report = Reporter(console)
    result = train(config, workdir, report, may_exit=True, profile=profile, trust=trust)
    if result.signal:
        report.say(
            f"stopped by {result.signal.name}; checkpoint saved in {result.folder}; "
            "run the same command to resume"
        )
        return 128 + result.signal
    if result.metrics is None:
        report.say("the last evaluation failed; run the same command again to evaluate")
        return LEFT_OUT
    print_table(console, result.metrics)
    if config.eval.pictures:
        report.say(f"detections: {result.evaluation / 'detections.png'}")
    if config.eval.report:
        report.say(f"report:     {result.evaluation / 'report.html'}")
    if result.curves:
        report.say(f"curves:     {result.curves}")
    report.say(f"results:    {result.folder} (checkpoints, eval, metrics.jsonl, tensorboard)")
    if result.failed_evaluations:
        report.say(f"failed evaluations: {result.failed_evaluations}, see above")
        return LEFT_OUT
    return 0


def main(argv: list[str]) -> int:
    parsed = parse(argv, __doc__, [WORKDIR, PROFILE, TRUST, *PROCESSES])
    if parsed is None:
        return 0
    profile = None
    if parsed.flags.profile is not None:
        profile = ProfiledSteps.parse(parsed.flags.profile)
        profile.check(parsed.config.train.steps)
    with on_all_hosts(parsed) as console:
        flags = parsed.flags
        return run(parsed.config, flags.workdir, console, profile, flags.trust)
