"""Time what a run is made of; one JSON object a line.

usage: python scripts/benchmark.py step --config=experiments/coco.py [--runs=5] [--steps=20]
           [--config.train.batch_size=16 ...]     a training step on random images, by bucket
       python scripts/benchmark.py predict --config=…   eval.batch_size images, to candidates
       python scripts/benchmark.py input --config=experiments/coco.py    decode, scale, mirror, pad:
           images/s a core beside a bare OpenCV loop and, where it is installed, torchvision
       python scripts/benchmark.py memory --config=… [--steps=10000]     host memory of the loader
       python scripts/benchmark.py padding --config=experiments/coco.py  wasted pixels by scheme, on
           COCO's picture sizes

Contestants and buckets take turns, RUNS times, so that drift of the machine hits all alike; figures
are medians.
"""

import json
import sys
from collections.abc import Iterator

from absl import flags
from ml_collections import config_flags

from retina_jax import command_line
from retina_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment.")
_RUNS = flags.DEFINE_integer("runs", 5, "Timed runs of each bucket.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 20, "Steps, or batches, of a run.", lower_bound=1)
_CLASSES = flags.DEFINE_integer("classes", 80, "Classes of the random data.", lower_bound=1)
KINDS = ("step", "predict", "input", "memory", "padding")


def benchmark(kind: str, config) -> Iterator[dict]:
    """The figures of one kind, as they come."""
    if kind == "input":
        from retina_jax.benchmarks.input import time_input

        return time_input(config, _RUNS.value, _STEPS.value)
    if kind == "memory":
        from retina_jax.benchmarks.input import measure_memory

        return measure_memory(config, _STEPS.value)
    if kind == "padding":
        from retina_jax.benchmarks.padding import compare_padding

        return compare_padding(config)
    from retina_jax.benchmarks.steps import time_steps

    return time_steps(kind, config, _RUNS.value, _STEPS.value, _CLASSES.value)


def main(argv: list[str]) -> int:
    if command_line.wants_help(argv) or argv[1:2] not in [[kind] for kind in KINDS]:
        print(__doc__)
        return 0 if command_line.wants_help(argv) else 2
    try:
        config = command_line.parse([argv[0], *argv[2:]], _CONFIG, required={})
        for figures in benchmark(argv[1], config):
            print(json.dumps(figures), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
