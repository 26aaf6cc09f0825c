"""Train RetinaNet and evaluate it periodically; run the same command to resume.

usage: retina-jax train --config=experiments/shapes.py --workdir=DIR
           [--config.path.to.field=value ...]
       retina-jax train --data=DIR_OR_JSON --workdir=DIR     from files to a detector: prepares
           them in DIR/data, checks them, fits the config to them and trains

--data is a COCO .json file, or a folder with COCO .json files, YOLO labels (data.yaml, classes.txt
or obj.names), VOC .xml files, or a data set that prepare wrote. If it has a single split, a fifth
of the images, chosen by a hash of the file name, are held out for evaluation. Without --config,
experiments/finetune.py is used.

--seeds=3 trains three runs with seeds 0, 1 and 2, in DIR/seed0, DIR/seed1 and DIR/seed2, as one
program: each step computes all three on the same batches (--config.data.seed). If that does not fit
into memory, they are trained one after the other. Each folder is that of a run with
--config.seed=N and the same --config.data.seed. A run with a non-finite loss ends, and the others
go on; the exit code is then 4.

With --config.train.patience=3, training ends after three evaluations in a row without a new best
AP. The command then prints the results of the best checkpoint; run again, it trains no further
unless the patience is larger or 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from retina_jax.config.flags import PROCESSES, TRUST, Flag, parse, value_after
from retina_jax.errors import LEFT_OUT, NON_FINITE, UserError
from retina_jax.jobs import on_all_hosts
from retina_jax.placement import check_alone
from retina_jax.training.profiled_steps import ProfiledSteps

if TYPE_CHECKING:
    import ml_collections
    from rich.console import Console

    from retina_jax.config.flags import Parsed
    from retina_jax.prepare.handling import Handling

FINETUNE = "experiments/finetune.py"
"""The experiment for ``--data``."""
WORKDIR = Flag(
    "workdir", "folder of the run, or gs://BUCKET/FOLDER; created if missing", example="runs/first"
)

DATA = Flag(
    "data",
    "your images and annotations, instead of --config.data.dir: a COCO .json file or a "
    "folder (COCO, YOLO, VOC, or written by prepare); prepared in WORKDIR/data",
)
ON_BAD = Flag(
    "on_bad",
    "with --data, what to do with unusable records: stop, or skip (leaves them out)",
    "stop",
)
MAX_BAD = Flag(
    "max_bad", "with --on-bad=skip, the largest share of records that may be left out", "0.01"
)
SEEDS = Flag(
    "seeds", "number of runs, with seeds 0, 1, …, to train as one program in WORKDIR/seed0, …; "
    "config.seed then is the seed of the data alone", least=2,
)  # fmt: skip

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
    staged: bool = False,
) -> int:
    """Trains, then prints the table; returns the exit code.

    ``staged``: the data set has just been prepared; announces the stages that follow.
    """
    from retina_jax.evaluation.report import print_table
    from retina_jax.progress import Reporter
    from retina_jax.runs.train import train

    report = Reporter(console)
    result = train(
        config, workdir, report, may_exit=True, profile=profile, trust=trust, staged=staged
    )
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


def run_seeds(
    config: ml_collections.ConfigDict, workdir: str, count: int, console: Console, trust: bool
) -> int:
    """Trains several seeds, then prints their AP; returns the exit code."""
    from retina_jax.progress import Reporter
    from retina_jax.runs.train_seeds import train_seeds

    report = Reporter(console)
    result = train_seeds(config, workdir, count, report, may_exit=True, trust=trust)
    if result.signal:
        report.say(
            f"stopped by {result.signal.name}; checkpoints saved in {workdir}; "
            "run the same command to resume"
        )
        return 128 + result.signal
    for each in result.seeds:
        values = "the last evaluation failed; run the same command again to evaluate"
        if each.diverged:
            values = f"diverged ({each.diverged}); delete its folder to train it again"
        elif each.metrics:
            shown = ((name, each.metrics[name]) for name in ("AP", "AP50", "AP75"))
            values = ", ".join(f"{n} {'–' if v is None else f'{v:.3f}'}" for n, v in shown)
        report.say(f"seed {each.seed}: {values} ({each.folder})")
    failed = sum(each.failed_evaluations for each in result.seeds)
    if failed:
        report.say(f"failed evaluations: {failed}, see above")
    if not all(each.metrics or each.diverged for each in result.seeds):
        return LEFT_OUT
    if any(each.diverged for each in result.seeds):
        return NON_FINITE
    return LEFT_OUT if failed else 0


def main(argv: list[str]) -> int:
    if value_after(argv, "data") is not None and value_after(argv, "config") is None:
        argv = [f"--config={FINETUNE}", *argv]
    parsed = parse(
        argv, __doc__, [WORKDIR, DATA, ON_BAD, MAX_BAD, SEEDS, PROFILE, TRUST, *PROCESSES]
    )
    if parsed is None:
        return 0
    _check_data_flags(parsed)
    _check_seeds_flags(parsed)
    profile = None
    if parsed.flags.profile is not None:
        profile = ProfiledSteps.parse(parsed.flags.profile)
        profile.check(parsed.config.train.steps)
    with on_all_hosts(parsed) as console:
        config, flags = parsed.config, parsed.flags
        if flags.data is not None:
            from retina_jax.progress import Reporter
            from retina_jax.runs.own_data import with_own_data

            handling = _handling(flags.on_bad, flags.max_bad)
            config = with_own_data(config, flags.data, flags.workdir, handling, Reporter(console))
        if flags.seeds is not None:
            return run_seeds(config, flags.workdir, flags.seeds, console, flags.trust)
        staged = flags.data is not None
        return run(config, flags.workdir, console, profile, flags.trust, staged)


def _handling(on_bad: str, max_bad: str) -> Handling:
    """What to do with unusable records, from the flags; `UserError` for other values."""
    from retina_jax.prepare.handling import Handling

    if on_bad not in ("stop", "skip"):
        raise UserError(f"--on-bad={on_bad} must be stop or skip; set --on-bad=skip")
    try:
        share = float(max_bad)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"--max-bad={max_bad} must be a share from 0 to 1, such as 0.01")
    return Handling(on_bad == "skip", share)


def _check_data_flags(parsed: Parsed) -> None:
    """Raises `UserError` for flags that contradict ``--data``."""
    flags = parsed.flags
    _handling(flags.on_bad, flags.max_bad)
    if flags.data is None:
        return
    for name in ("data.dir", "data.name"):
        if name in parsed.overrides:
            raise UserError(
                f"--data={flags.data} and --config.{name} both name the data set; remove one"
            )
    check_alone("train --data")
    if flags.num_processes not in (None, 1):
        raise UserError(
            f"train --data runs in one process, but --num-processes={flags.num_processes}; prepare "
            "the data set first and set --config.data.dir"
        )


def _check_seeds_flags(parsed: Parsed) -> None:
    """Raises `UserError` for flags that contradict ``--seeds``."""
    flags = parsed.flags
    if flags.seeds is None:
        return
    check_alone("train --seeds")
    if flags.num_processes not in (None, 1):
        raise UserError(
            f"train --seeds runs in one process, but --num-processes={flags.num_processes}; train "
            "the seeds one by one, with --config.seed"
        )
    if flags.profile is not None:
        raise UserError(f"--profile={flags.profile} records one run; remove --seeds or --profile")
