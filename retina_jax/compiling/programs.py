"""Compiles the training and prediction steps of a config for a slice, and measures them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import ml_collections

from retina_jax import parallel
from retina_jax.compiling import hlo
from retina_jax.compiling.chips import GIB
from retina_jax.errors import UserError, is_out_of_device_memory
from retina_jax.evaluation.predict_step import make_predict_step
from retina_jax.models import retinanet
from retina_jax.training.optimizer import build_optimizer, learning_rate_schedule
from retina_jax.training.step import (
    batch_shapes,
    make_train_step,
    state_shapes,
    variable_shapes,
)

BATCH_FIELDS = {"train": "train.batch_size", "predict": "eval.batch_size"}
"""The steps, and the field of each one's global batch size."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step, per device; if it could not be compiled, only ``total`` is known."""

    images: int
    """Images per device."""
    total: float
    """Memory that it takes, bytes; if it could not be compiled, what XLA requested."""
    compiled: bool = True
    """False: too large for the device."""
    arguments: int = 0
    outputs: int = 0
    """Size of the results that do not reuse an argument's memory, bytes."""
    aliased: int = 0
    """Size of the results that do (the new state replaces the old one), bytes."""
    temporaries: int = 0
    code: int = 0
    flops: float = 0.0
    traffic: dict[str, int] = dataclasses.field(default_factory=dict)
    """HBM traffic by source, bytes per step."""


def images_per_chip(config: ml_collections.ConfigDict, step: str, chips: int) -> int:
    """A device's share; `UserError` if the number of chips does not divide the global batch."""
    field = BATCH_FIELDS[step]
    group, _, name = field.partition(".")
    size = config[group][name]
    if size % chips:
        fix = max(1, round(size / chips)) * chips
        raise UserError(
            f"config.{field}={size} must be a multiple of the {chips} devices in the slice; "
            f"set --config.{field}={fix}"
        )
    return size // chips


def compile_step(
    step: str,
    config: ml_collections.ConfigDict,
    classes: int,
    there: parallel.AbsentSlice,
    bucket: tuple[int, int],
    images: int,
) -> Program:
    """Compiles ``step`` ("train" or "predict") for ``images`` images per device."""
    batch = batch_shapes(config, bucket, images * len(there.devices))
    try:
        compiled = _COMPILE[step](config, classes, there, batch)
    except Exception as error:
        needed = memory_needed(str(error))
        if needed is None or not is_out_of_device_memory(error):
            raise
        return Program(images, needed, compiled=False)
    memory = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    parts = (
        memory.argument_size_in_bytes,
        outputs,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
    )
    return Program(
        images,
        sum(parts),
        arguments=parts[0],
        outputs=outputs,
        aliased=memory.alias_size_in_bytes,
        temporaries=parts[2],
        code=parts[3],
        flops=compiled.cost_analysis()["flops"],
        traffic=dict(hlo.traffic(hlo.parse(compiled.as_text()))),
    )


def _compile_train(config, classes, there, batch):
    model = retinanet.build(config, classes, parallel.AXIS)
    optimizer = build_optimizer(config)
    step = make_train_step(model, optimizer, learning_rate_schedule(config), config)
    state = state_shapes(model, optimizer, config)
    return there.compile(step, "all part", "all all", (state, batch), donate_argnums=0)


def _compile_predict(config, classes, there, batch):
    model = retinanet.build(config, classes)
    arguments = variable_shapes(model), batch.images, batch.sizes
    return there.compile(make_predict_step(model, config), "all part part", "part", arguments)


_COMPILE: dict[str, Callable] = {"train": _compile_train, "predict": _compile_predict}


def memory_needed(message: str) -> float | None:
    """Bytes that a program needs, from libtpu's out-of-memory message; None if absent."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    for pattern in (
        r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
        r"\(([\d.]+)([KMGT]?)\) exceeds available HBM",
    ):
        if match := re.search(pattern, message):
            return float(match[1]) * units[match[2]]
    return None


def largest_batch(programs: list[Program], limit: float) -> int | None:
    """Largest number of images per device by the line through two compilations; None if flat.

    The line goes through the two programs whose memory is nearest to ``limit`` (bytes).
    """
    near = sorted(programs, key=lambda p: abs(p.total - limit))[:2]
    if len(near) < 2 or near[0].images == near[1].images:
        return None
    slope = (near[1].total - near[0].total) / (near[1].images - near[0].images)
    if slope <= 0:
        return None
    return max(0, int(near[0].images + (limit - near[0].total) / slope))
