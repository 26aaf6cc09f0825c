"""Time an experiment's training or prediction step on random images.

usage: python scripts/benchmark.py step --config=experiments/coco.py [--runs=5] [--steps=20]
           [--config.train.batch_size=16 ...]
       python scripts/benchmark.py predict --config=…   (eval.batch_size images, to candidates)

One bucket after the other, RUNS times in turn, so that drift of the machine hits all alike;
prints one JSON object a bucket: images/s, memory, compilation. Data loading is left out.
"""

import json
import statistics
import sys
import time

from absl import flags
from ml_collections import config_flags

from retina_jax import command_line
from retina_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment.")
_RUNS = flags.DEFINE_integer("runs", 5, "Timed runs of each bucket.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 20, "Steps of a run.", lower_bound=1)
_CLASSES = flags.DEFINE_integer("classes", 80, "Classes of the random data.", lower_bound=1)


def random_batch(config, bucket: tuple[int, int], images: int, classes: int):
    """Noise with ten boxes an image, as a `Batch` on the host."""
    import numpy as np

    from retina_jax.types import Batch, GroundTruth

    height, width = bucket
    rng = np.random.default_rng(0)
    most = config.data.max_boxes
    corner = rng.uniform(0, 0.7, (images, most, 2)) * [width, height]
    side = rng.uniform(0.02, 0.3, (images, most, 2)) * [width, height]
    return Batch(
        images=rng.integers(0, 256, (images, height, width, 3), dtype=np.uint8),
        sizes=np.tile(np.array([bucket], np.int32), (images, 1)),
        ground_truth=GroundTruth(
            boxes=np.concatenate([corner, corner + side], axis=-1).astype(np.float32),
            labels=rng.integers(0, classes, (images, most)).astype(np.int32),
            valid=np.tile(np.arange(most) < 10, (images, 1)),
            is_crowd=np.zeros((images, most), bool),
        ),
        index=np.arange(images, dtype=np.int32),
        example_mask=np.ones(images, bool),
        cut_away=np.zeros(images, np.int32),
    )


def training_step(config, devices):
    """``run(batch)`` that takes a training step, and its global batch size."""
    from retina_jax import parallel
    from retina_jax.models import retinanet
    from retina_jax.optimizer import build_optimizer, learning_rate_schedule
    from retina_jax.train_step import init_state, make_train_step

    model = retinanet.build(config, _CLASSES.value, parallel.AXIS)
    optimizer = build_optimizer(config)
    schedule = learning_rate_schedule(config)
    step = devices.train_step(make_train_step(model, optimizer, schedule, config))
    state = devices.replicate(init_state(model, optimizer, config))

    def run(batch):
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return run, "train.batch_size"


def prediction_step(config, devices):
    """``run(batch)`` that gives candidates before NMS, and its global batch size."""
    from retina_jax.models import retinanet
    from retina_jax.optimizer import build_optimizer
    from retina_jax.predict_step import make_predict_step
    from retina_jax.train_step import init_state

    model = retinanet.build(config, _CLASSES.value)
    state = init_state(model, build_optimizer(config), config)
    variables = devices.replicate({"params": state.params, "batch_stats": state.batch_stats})
    step = devices.predict_step(make_predict_step(model, config))
    return lambda batch: step(variables, batch.images, batch.sizes), "eval.batch_size"


STEPS = {"step": training_step, "predict": prediction_step}


def benchmark(kind: str, config) -> None:
    import jax

    from retina_jax import parallel

    devices = parallel.Devices.local()
    run, field = STEPS[kind](config, devices)
    total = config[field.split(".")[0]].batch_size
    size = devices.check_batch(total, field)
    batches, compile_seconds, seconds = {}, {}, {bucket: [] for bucket in config.data.buckets}
    for bucket in config.data.buckets:
        batches[bucket] = devices.shard(random_batch(config, bucket, size, _CLASSES.value))
        started = time.perf_counter()
        jax.block_until_ready(run(batches[bucket]))
        compile_seconds[bucket] = time.perf_counter() - started
    for _ in range(_RUNS.value):
        for bucket, batch in batches.items():
            started = time.perf_counter()
            for _ in range(_STEPS.value):
                outputs = run(batch)
            jax.block_until_ready(outputs)
            seconds[bucket].append((time.perf_counter() - started) / _STEPS.value)
    memory = devices.devices[0].memory_stats() or {}
    for bucket in config.data.buckets:
        median = statistics.median(seconds[bucket])
        print(
            json.dumps(
                {
                    "timed": kind,
                    "devices": devices.describe(),
                    "backbone": config.model.backbone,
                    "input": list(bucket),
                    "batch_size": total,
                    "precision": config.train.precision,
                    "images_per_second": round(total / median, 2),
                    "step_seconds": [round(s, 4) for s in sorted(seconds[bucket])],
                    "first_step_seconds": round(compile_seconds[bucket], 1),
                    "peak_memory_gib": round(memory.get("peak_bytes_in_use", 0) / 2**30, 2) or None,
                }
            )
        )


def main(argv: list[str]) -> int:
    if command_line.wants_help(argv) or argv[1:2] not in (["step"], ["predict"]):
        print(__doc__)
        return 0 if command_line.wants_help(argv) else 2
    try:
        benchmark(argv[1], command_line.parse([argv[0], *argv[2:]], _CONFIG, required={}))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
