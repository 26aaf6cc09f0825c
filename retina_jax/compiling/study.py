"""Which batch sizes of a config fit on the chips of a slice, and how fast they can be at best."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import ml_collections

from retina_jax.compiling.chips import GIB, Chip, chip_of, open_slice
from retina_jax.compiling.programs import (
    BATCH_FIELDS,
    Program,
    compile_step,
    images_per_chip,
    largest_batch,
)
from retina_jax.config import resolve
from retina_jax.errors import UserError
from retina_jax.progress import Reporter
from retina_jax.wording import counted

MOST_IMAGES = 1024
"""Per device: the search for the largest batch goes no further."""


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The programs of one input shape."""

    size: tuple[int, int]
    """(height, width), pixels."""
    programs: dict[str, list[Program]]
    """By step: first for the config's batch size, then for those of the search."""


@dataclasses.dataclass(frozen=True)
class Study:
    """The result of `study`."""

    topology: str
    chips: int
    chip: Chip
    buckets: list[Bucket]

    @property
    def limit(self) -> float:
        """Memory of a device, bytes."""
        return self.chip.hbm * GIB

    def fits(self, program: Program) -> bool:
        return program.compiled and program.total <= self.limit


def study(
    config: ml_collections.ConfigDict,
    topology: str,
    steps: list[str],
    compilations: int = 3,
    classes: int = 80,
    report: Reporter | None = None,
) -> Study:
    """Compiles ``steps`` for every bucket of a config.

    The training step is compiled for up to ``compilations`` batch sizes per bucket: the config's;
    half of it (or twice, if it is one image); the largest that should fit by the line through these
    two; and closer ones if the line was wrong. Raises `UserError` for a slice that does not exist
    or cannot share the batch.
    """
    report = report or Reporter()
    if unknown := set(steps) - set(BATCH_FIELDS):
        raise UserError(
            f"--steps={','.join(sorted(unknown))} is not a step; choose from "
            f"{','.join(BATCH_FIELDS)}"
        )
    chip = chip_of(topology)
    there = open_slice(topology)
    chips = len(there.devices)
    share = {step: images_per_chip(config, step, chips) for step in steps}
    buckets = resolve(config).buckets
    result = Study(topology, chips, chip, [])
    total = len(buckets) * sum(compilations if step == "train" else 1 for step in steps)
    with report.progress("compiled", total) as bar:
        for bucket in buckets:

            def run(step: str, images: int, bucket=bucket) -> Program:
                height, width = bucket
                what = f"{step} {height}×{width}, {counted(images, 'image')} per device"
                report.say(f"compiling {what}; this takes minutes")
                started = time.monotonic()
                program = compile_step(step, config, classes, there, bucket, images)
                seconds = time.monotonic() - started
                report.say(f"{what}: {program.total / GIB:.2f} GiB per device, {seconds:.0f} s")
                bar.advance(what)
                return program

            programs = {}
            for step in steps:
                programs[step] = [run(step, share[step])]
                if step == "train":
                    _search(programs[step], compilations, result, run)
            result.buckets.append(Bucket(bucket, programs))
    return result


def _search(programs: list[Program], compilations: int, study: Study, run: Callable) -> None:
    """Compiles further batch sizes of the training step, in search of the largest that fits."""
    first = programs[0].images
    if first == 1 and not study.fits(programs[0]):
        return
    while len(programs) < compilations:
        if len(programs) == 1:
            images = first // 2 or 2
        else:
            images = min(largest_batch(programs, study.limit) or 0, MOST_IMAGES)
        if not images or images in {program.images for program in programs}:
            return
        programs.append(run("train", images))


def what_does_not_fit(study: Study, config: ml_collections.ConfigDict) -> str:
    """One line that names the first step that does not fit and the flags that help; "" if none."""
    for bucket in study.buckets:
        for step, programs in bucket.programs.items():
            asked = programs[0]
            if study.fits(asked):
                continue
            field = BATCH_FIELDS[step]
            fitting = [p.images for p in programs if study.fits(p)]
            images = max(fitting, default=max(1, asked.images // 2))
            fixes = [f"--config.{field}={images * study.chips}"] if asked.images > 1 else []
            if step == "train" and not config.model.remat:
                fixes.append("--config.model.remat=True")
            fixes.append("a smaller --config.data.short_side or --config.data.buckets")
            height, width = bucket.size
            return (
                f"the {step} step at {height}×{width} needs {asked.total / GIB:.2f} GiB for "
                f"{counted(asked.images, 'image')} per device, but a device has {study.chip.hbm} "
                f"GiB; set {', or '.join(fixes)}"
            )
    return ""
