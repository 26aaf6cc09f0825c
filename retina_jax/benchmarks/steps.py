"""Times training and prediction steps on random images, without the loader."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar

import jax
import numpy as np

from retina_jax import parallel
from retina_jax.config import resolve
from retina_jax.evaluation.predict_step import make_predict_step
from retina_jax.models import retinanet
from retina_jax.training.memory import GIB, CompiledSteps
from retina_jax.training.optimizer import build_optimizer, learning_rate_schedule
from retina_jax.training.step import init_state, make_train_step
from retina_jax.types import Batch, GroundTruth

Key = TypeVar("Key", bound=Hashable)


def random_batch(config, bucket: tuple[int, int], images: int, classes: int):
    """A host `Batch` of random noise with ten boxes per image."""
    height, width = bucket
    rng = np.random.default_rng(0)
    max_boxes = config.data.max_boxes
    corner = rng.uniform(0, 0.7, (images, max_boxes, 2)) * [width, height]
    side = rng.uniform(0.02, 0.3, (images, max_boxes, 2)) * [width, height]
    return Batch(
        images=rng.integers(0, 256, (images, height, width, 3), dtype=np.uint8),
        sizes=np.tile(np.array([bucket], np.int32), (images, 1)),
        original_sizes=np.tile(np.array([bucket], np.int32), (images, 1)),
        ground_truth=GroundTruth(
            boxes=np.concatenate([corner, corner + side], axis=-1).astype(np.float32),
            labels=rng.integers(0, classes, (images, max_boxes)).astype(np.int32),
            valid=np.tile(np.arange(max_boxes) < 10, (images, 1)),
            is_crowd=np.zeros((images, max_boxes), bool),
        ),
        index=np.arange(images, dtype=np.int32),
        example_mask=np.ones(images, bool),
        cut_away=np.zeros(images, np.int32),
    )


def training_step(config, devices, classes):
    """``run(batch)``, which takes a training step, and the field of its global batch size.

    Between them, the memory of its program as a function of the batch, GiB.
    """
    model = retinanet.build(config, classes, parallel.AXIS)
    optimizer = build_optimizer(config)
    schedule = learning_rate_schedule(config)
    step = make_train_step(model, optimizer, schedule, config)
    step = CompiledSteps(devices.train_step(step))
    state = devices.replicate(init_state(model, optimizer, config))

    def run(batch):
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return run, step.memory_gib, "train.batch_size"


def prediction_step(config, devices, classes):
    """``run(batch)``, which returns candidates before NMS; otherwise as `training_step`."""
    model = retinanet.build(config, classes)
    state = init_state(model, build_optimizer(config), config)
    variables = devices.replicate({"params": state.params, "batch_stats": state.batch_stats})
    step = CompiledSteps(devices.predict_step(make_predict_step(model, config)))

    def arguments(batch):
        return batch.images, batch.sizes

    return (
        lambda batch: step(variables, *arguments(batch)),
        lambda batch: step.memory_gib(*arguments(batch)),
        "eval.batch_size",
    )


STEPS = {"step": training_step, "predict": prediction_step}


def take_turns(rounds: Mapping[Key, Callable[[], object]], runs: int) -> dict[Key, list[float]]:
    """Seconds of each round, ``runs`` times; they alternate, so that drift affects all equally."""
    seconds: dict[Key, list[float]] = {key: [] for key in rounds}
    for _ in range(runs):
        for key, take in rounds.items():
            started = time.perf_counter()
            take()
            seconds[key].append(time.perf_counter() - started)
    return seconds


def steps_of(run: Callable[[Batch], object], batch: Batch, steps: int) -> Callable[[], object]:
    """A round: takes ``steps`` steps on ``batch`` and waits for the last."""

    def take():
        for _ in range(steps):
            outputs = run(batch)
        return jax.block_until_ready(outputs)

    return take


def described(config, devices: parallel.Devices, bucket: tuple[int, int], total: int) -> dict:
    """What was timed, for a row of results; ``total``: images per step."""
    return {
        "devices": devices.describe(),
        "backbone": config.model.backbone,
        "input": list(bucket),
        "batch_size": total,
        "precision": config.train.precision,
    }


def peak_memory_gib(devices: parallel.Devices) -> float | None:
    """Largest memory in use on the first device so far, GiB; None where it does not tell."""
    memory = devices.devices[0].memory_stats() or {}
    return round(memory.get("peak_bytes_in_use", 0) / GIB, 2) or None


def time_steps(kind: str, config, runs: int, steps: int, classes: int) -> Iterator[dict]:
    """Times each bucket; buckets alternate ``runs`` times, so that drift affects all equally."""
    devices = parallel.Devices.local()
    run, memory_of, field = STEPS[kind](config, devices, classes)
    total = config[field.split(".")[0]].batch_size
    size = devices.check_batch(total, field, config.train.accumulate if kind == "step" else 1)
    buckets = resolve(config).buckets
    batches, compile_seconds = {}, {}
    for bucket in buckets:
        batches[bucket] = devices.shard(random_batch(config, bucket, size, classes))
        started = time.perf_counter()
        jax.block_until_ready(run(batches[bucket]))
        compile_seconds[bucket] = time.perf_counter() - started
    rounds = {bucket: steps_of(run, batch, steps) for bucket, batch in batches.items()}
    for bucket, seconds in take_turns(rounds, runs).items():
        step_seconds = sorted(each / steps for each in seconds)
        yield {
            "timed": kind,
            **described(config, devices, bucket, total),
            "images_per_second": round(total / statistics.median(step_seconds), 2),
            "step_seconds": [round(s, 4) for s in step_seconds],
            "first_step_seconds": round(compile_seconds[bucket], 1),
            "program_memory_gib": memory_of(batches[bucket]),
            "peak_memory_gib": peak_memory_gib(devices),
        }
