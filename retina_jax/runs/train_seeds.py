"""Trains several seeds of one config as one program, or one after the other."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

from retina_jax import parallel
from retina_jax.config import resolve
from retina_jax.config.values import changed_config
from retina_jax.errors import NonFiniteLossError, RunError, UserError, is_out_of_device_memory
from retina_jax.progress import Reporter
from retina_jax.runs.evaluate import evaluate_variables
from retina_jax.runs.fitting import fitted_to_data
from retina_jax.runs.train import (
    Begun,
    begin,
    explain_faults,
    finished,
    train,
)
from retina_jax.training import averaging, seeds
from retina_jax.training.checkpoint import Checkpoints, has_checkpoints, steps_on_disk
from retina_jax.training.error_log import errors_recorded
from retina_jax.training.lease import Lease
from retina_jax.training.loop import TrainingLoop
from retina_jax.training.memory import GIB, CompiledSteps, program_memory
from retina_jax.training.optimizer import learning_rate_schedule
from retina_jax.training.seeds_loop import DIVERGED, SeedRun, SeedsLoop, mark_diverged
from retina_jax.training.step import batch_shapes, make_train_step
from retina_jax.training.stop import StopRequest
from retina_jax.training.workdir import workdir_at
from retina_jax.types import TrainState

_USABLE = 0.9
"""Share of a device's memory for the step: the rest is for batches on their way and evaluation."""


@dataclasses.dataclass(frozen=True)
class SeedResult:
    """How the run of a seed ended."""

    seed: int
    folder: Path
    metrics: dict[str, Any] | None
    """COCO metrics of the last evaluation; None if there is none."""
    diverged: str = ""
    """The message of a non-finite loss that stopped the run."""
    failed_evaluations: int = 0
    """Number of evaluations that failed in this call."""


@dataclasses.dataclass(frozen=True)
class SeedsResult:
    """The result of `train_seeds`; ``signal`` if one stopped it, and the command can resume."""

    seeds: list[SeedResult]
    signal: signal.Signals | None = None


def check_config(config: ml_collections.ConfigDict) -> None:
    """`UserError` for fields with which the seeds would not take the same steps."""
    train, optimizer = config.train, config.optimizer
    for field, value, refused, fix in (
        ("train.patience", train.patience, train.patience > 0, 0),
        ("optimizer.schedule", optimizer.schedule, optimizer.schedule == "plateau", "cosine"),
        ("train.on_nonfinite", train.on_nonfinite, train.on_nonfinite == "rollback", "stop"),
    ):
        if refused:
            raise UserError(
                f"config.{field}={value} lets each seed take other steps, but --seeds takes those "
                f"of all seeds together; set --config.{field}={fix}, or train them one by one"
            )
    if train.keep_checkpoints < 2:
        raise UserError(
            f"config.train.keep_checkpoints={train.keep_checkpoints}: a kill could leave the seeds "
            "without a common checkpoint; set --config.train.keep_checkpoints=2"
        )


def config_of(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    """The config of one seed's run: its own weights, the same data as the others'."""
    return changed_config(config, {"seed": seed, "data.seed": resolve(config).data_seed})


def train_seeds(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    count: int,
    report: Reporter | None = None,
    may_exit: bool = False,
    trust: bool = False,
) -> SeedsResult:
    """Trains seeds 0 to ``count`` - 1 in ``workdir/seedN``; resumes if possible.

    All see the same batches, those of ``data.seed``. Their states are stacked and take their steps
    in one program; if its memory exceeds the device's, the seeds are trained one after the other.
    Each folder is the workdir of a run with ``config_of(config, seed)``. A seed with a non-finite
    loss ends; the others go on. Arguments are those of `runs.train.train`; runs in one process.

    Raises `UserError` for errors that the user can fix.
    """
    report = report or Reporter()
    check_config(config)
    folder = workdir_at(workdir)
    folders = {seed: folder / f"seed{seed}" for seed in range(count)}
    # each run fits its own config, all to the same values, and stores what was fitted
    begun = next((own for own in folders.values() if has_checkpoints(own)), None)
    options = fitted_to_data(config, Reporter(), begun).config.train
    left = {
        seed: steps_on_disk(own)
        for seed, own in folders.items()
        if not _has_ended(own, options.steps)
    }
    groups = _in_step(left, options.checkpoint_every)
    if len(groups) > 1:
        listed = "; ".join(", ".join(map(str, group)) for group in groups)
        report.note(f"not all seeds are at the same step; training in turn: {listed}")
    stopped_by, failed = None, Counter()
    for group in groups:
        alone = group
        if len(group) > 1 and stopped_by is None:
            stopped_by, alone = _train_together(
                config, folders, group, failed, report, may_exit, trust
            )
        for seed in alone:
            if stopped_by is None:
                stopped_by = _train_alone(
                    config, folders[seed], seed, failed, report, may_exit, trust
                )
    results = [_result(seed, own, options.steps, failed[seed]) for seed, own in folders.items()]
    return SeedsResult(results, stopped_by)


def _has_ended(folder: Path, steps: int) -> bool:
    """Whether a seed is trained to a step and evaluated, or has diverged."""
    evaluated = folder / "eval" / str(steps) / "metrics.json"
    # a kill can leave the evaluation of a checkpoint that is not on disk
    ended = steps in steps_on_disk(folder) and evaluated.exists()
    return ended or (folder / DIVERGED).exists()


def _in_step(steps: dict[int, set[int]], every: int) -> list[list[int]]:
    """Groups of seeds that can go on as one program, by the steps of their checkpoints.

    The seeds of a group have no checkpoint, or have one in common from which none is further than
    ``every`` steps: as after a kill while they were written. Seeds that are new (another
    ``count``, or a folder that was deleted) or went on alone would cost the others their work.
    """

    def can_join(group: list[int]) -> bool:
        common = _common_step([steps[seed] for seed in group])
        if common < 0:
            return not any(steps[seed] for seed in group)
        return all(max(steps[seed]) - common <= every for seed in group)

    groups: list[list[int]] = []
    for seed in sorted(steps, key=lambda seed: (-max(steps[seed], default=-1), seed)):
        group = next((group for group in groups if can_join([*group, seed])), None)
        if group is None:
            groups.append([seed])
        else:
            group.append(seed)
    return [sorted(group) for group in groups]


def _common_step(steps: Sequence[set[int]]) -> int:
    """The newest step in all sets; -1 without any."""
    return max(set.intersection(*steps), default=-1)


def _result(seed: int, folder: Path, steps: int, failed: int) -> SeedResult:
    diverged, metrics = "", None
    if (folder / DIVERGED).exists():
        diverged = json.loads((folder / DIVERGED).read_text())["message"]
    path = folder / "eval" / str(steps) / "metrics.json"
    if path.exists() and not diverged:
        metrics = json.loads(path.read_text())
    return SeedResult(seed, folder, metrics, diverged, failed)


def _train_alone(config, folder, seed, failed, report, may_exit, trust) -> signal.Signals | None:
    """One seed as a run of its own; returns the signal that stopped it."""
    own = report.prefixed(f"seed {seed}: ")
    try:
        result = train(config_of(config, seed), folder, own, may_exit, trust=trust)
        failed[seed] = result.failed_evaluations
        return result.signal
    except NonFiniteLossError as error:
        own.note(str(error))
        mark_diverged(folder, error)
        return None


def _train_together(
    config: ml_collections.ConfigDict,
    folders: dict[int, Path],
    chosen: list[int],
    failed: Counter[int],
    report: Reporter,
    may_exit: bool,
    trust: bool,
) -> tuple[signal.Signals | None, list[int]]:
    """Trains the seeds as one program; sets in ``failed`` how many evaluations of each failed.

    Returns the signal that stopped it, and the seeds that still have to be trained: all of them if
    the program does not fit into memory.
    """
    _return_to_common_step(config, [folders[seed] for seed in chosen], report)
    with contextlib.ExitStack() as held, StopRequest(may_exit) as stop:
        stop.nothing_to_save(True)
        begun = []
        for seed in chosen:
            own = report if seed == chosen[0] else Reporter()  # the rest would say the same
            begun.append(begin(config_of(config, seed), folders[seed], held, own, trust, False))
        first = begun[0]
        steps = {run.first_step for run in begun}
        if len(steps) > 1:
            raise RunError(
                f"the newest checkpoints of the seeds are damaged (steps {sorted(steps)} are "
                "left); they have been moved aside; run the same command again"
            )
        listed = ", ".join(map(str, chosen))
        devices, schedule = first.devices, learning_rate_schedule(first.config)
        step = make_train_step(first.model, first.optimizer, schedule, first.config)
        program = CompiledSteps(devices.train_step(seeds.together(step)))
        with contextlib.ExitStack() as recorded:
            for run in begun:
                recorded.enter_context(errors_recorded(run.folder, True))
            recorded.enter_context(explain_faults(first.config, first.folder))
            states = seeds.stack([parallel.fetch(run.state) for run in begun])
            begun = [dataclasses.replace(run, state=None) for run in begun]  # frees their memory
            first = begun[0]
            problem = _too_large(program, states, first)
            if problem:
                report.note(f"{problem}; training the seeds one after the other")
                return None, chosen
            report.say(f"seeds {listed} as one program")
            states = devices.replicate(states)
            devices.check_equal(states, "at the start")
            runs = [
                _seed_run(seed, run, first, stop, report)
                for seed, run in zip(chosen, begun, strict=True)
            ]
            loop = SeedsLoop(first.config, runs, devices, stop, report)
            complete = loop.run(states, program, first.loader, first.first_step)
            failed.update({run.seed: run.loop.result.failed_evaluations for run in runs})
        if not complete:
            return stop.signal, []
        first.evaluator.finish_report(lambda: stop.signal is not None)
        for seed, run, own in zip(chosen, begun, runs, strict=True):
            if own.diverged is None:
                finished(run.config, run, own.loop.result, report.prefixed(f"seed {seed}: "))
    return None, []


def _return_to_common_step(
    config: ml_collections.ConfigDict, folders: list[Path], report: Reporter
) -> None:
    """Drops the checkpoints that only some seeds have: those of the moment of a kill."""
    common = _common_step([steps_on_disk(folder) for folder in folders])
    for folder in folders:
        if any(step > common for step in steps_on_disk(folder)):
            with Lease(folder, report):  # another program may be writing them
                checkpoints = Checkpoints(folder, config.train.keep_checkpoints)
                checkpoints.drop_after(common)
                checkpoints.close()


def _too_large(program: CompiledSteps, states: TrainState, run: Begun) -> str:
    """Why the stacked step does not fit into the devices' memory; "" if it does, or on CPUs."""
    limit = run.devices.memory_limit()
    if limit is None:
        return ""
    bucket = max(resolve(run.config).buckets, key=lambda sides: sides[0] * sides[1])
    images = run.config.train.batch_size
    batch = run.devices.shapes_of(batch_shapes(run.config, bucket, images))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), states)
    try:
        needed = program_memory(program.compile(shapes, batch))
    except Exception as error:
        if not is_out_of_device_memory(error):
            raise
        gc.collect()
        return "the device's memory is too small to compile the step of all seeds"
    if needed <= _USABLE * limit:
        return ""
    return (
        f"the step of all seeds needs {needed / GIB:.1f} GiB on each device, of which "
        f"{_USABLE * limit / GIB:.1f} GiB can be used"
    )


def _seed_run(seed: int, run: Begun, first: Begun, stop: StopRequest, report: Reporter) -> SeedRun:
    """The parts of one seed; the evaluator, and with it its compiled program, is shared."""
    own, evaluator = report.prefixed(f"seed {seed}: "), first.evaluator

    def evaluate(state: TrainState, step: int) -> dict[str, Any] | None:
        variables, target = averaging.variables_of(state), run.folder / "eval" / str(step)
        return evaluate_variables(evaluator, variables, step, target, stop, own)

    def restore(step: int) -> TrainState:
        raise RunError(f"seed {seed} cannot go back to step {step} alone")

    loop = TrainingLoop(
        run.config, run.folder, run.devices, evaluate, run.checkpoints, restore, stop, own,
        drawn=evaluator.drawn,
    )  # fmt: skip
    return SeedRun(seed, run.folder, loop, run.checkpoints, own)
