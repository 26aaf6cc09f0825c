"""Times a training step of several seeds as one program, compared with a step of each in turn."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import jax
import ml_collections

from retina_jax import parallel
from retina_jax.benchmarks.steps import described, random_batch, steps_of, take_turns
from retina_jax.config import resolve
from retina_jax.config.values import changed_config
from retina_jax.models import retinanet
from retina_jax.training import seeds
from retina_jax.training.memory import CompiledSteps
from retina_jax.training.optimizer import build_optimizer, learning_rate_schedule
from retina_jax.training.step import init_state, make_train_step


def time_seeds(
    config: ml_collections.ConfigDict, count: int, runs: int, steps: int, classes: int
) -> Iterator[dict]:
    """Times each bucket; both ways alternate ``runs`` times, so that drift affects them equally.

    A round takes ``steps`` steps of each of ``count`` seeds. Images per second count each image
    once for each seed.
    """
    devices = parallel.Devices.local()
    size = devices.check_batch(config.train.batch_size, "train.batch_size", config.train.accumulate)
    model = retinanet.build(config, classes, parallel.AXIS)
    optimizer = build_optimizer(config)
    step = make_train_step(model, optimizer, learning_rate_schedule(config), config)
    states = [
        parallel.fetch(init_state(model, optimizer, changed_config(config, {"seed": seed})))
        for seed in range(count)
    ]
    single = CompiledSteps(devices.train_step(step))
    stacked = CompiledSteps(devices.train_step(seeds.together(step)))
    alone = [devices.replicate(state) for state in states]
    together = devices.replicate(seeds.stack(states))

    def in_turn(batch):
        for number, state in enumerate(alone):
            alone[number], metrics = single(state, batch)
        return metrics

    def at_once(batch):
        nonlocal together
        together, metrics = stacked(together, batch)
        return metrics

    ways = {"in_turn": in_turn, "together": at_once}
    for bucket in resolve(config).buckets:
        batch = devices.shard(random_batch(config, bucket, size, classes))
        for run in ways.values():  # compiles
            jax.block_until_ready(run(batch))
        rounds = {name: steps_of(run, batch, steps) for name, run in ways.items()}
        seconds = {
            name: sorted(each / steps for each in taken)
            for name, taken in take_turns(rounds, runs).items()
        }
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        images = count * config.train.batch_size
        yield {
            "timed": "seeds",
            "seeds": count,
            **described(config, devices, bucket, config.train.batch_size),
            "images_per_second_in_turn": round(images / medians["in_turn"], 2),
            "images_per_second_together": round(images / medians["together"], 2),
            "gain": round(medians["in_turn"] / medians["together"], 3),
            "seconds_in_turn": [round(s, 4) for s in seconds["in_turn"]],
            "seconds_together": [round(s, 4) for s in seconds["together"]],
            "program_memory_gib_of_one": single.memory_gib(batch),
            "program_memory_gib_together": stacked.memory_gib(batch),
        }
