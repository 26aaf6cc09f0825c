"""Time what a run is made of; one JSON object per line.

usage: retina-jax benchmark step --config=experiments/coco.py [--runs=5] [--steps=20]
           [--config.train.batch_size=16 ...]     a training step on random images, by bucket
       retina-jax benchmark predict --config=…    eval.batch_size images, to candidates
       retina-jax benchmark input --config=…      decode, scale, mirror, pad: images/s per core
           beside a bare OpenCV loop and, where it is installed, torchvision
       retina-jax benchmark memory --config=… [--steps=10000]     host memory of the loader
       retina-jax benchmark padding --config=…    wasted pixels by scheme, on COCO's image sizes

Contestants and buckets take turns, RUNS times, so that drift of the machine affects all alike;
figures are medians.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from retina_jax.config.flags import Flag, Parsed, parse, wants_help
from retina_jax.errors import UserError

KINDS = ("step", "predict", "input", "memory", "padding")
FLAGS = (
    Flag("runs", "timed runs of each bucket", 5, least=1),
    Flag("steps", "steps, or batches, of a run", 20, least=1),
    Flag("classes", "classes of the random data", 80, least=1),
)


def benchmark(kind: str, parsed: Parsed) -> Iterator[dict]:
    """The figures of one kind, as they come."""
    config, flags = parsed.config, parsed.flags
    if kind == "input":
        from retina_jax.benchmarks.input import time_input

        return time_input(config, flags.runs, flags.steps)
    if kind == "memory":
        from retina_jax.benchmarks.input import measure_memory

        return measure_memory(config, flags.steps)
    if kind == "padding":
        from retina_jax.benchmarks.padding import compare_padding

        return compare_padding(config)
    from retina_jax.benchmarks.steps import time_steps

    return time_steps(kind, config, flags.runs, flags.steps, flags.classes)


def main(argv: list[str]) -> int:
    kind, rest = (argv[0], argv[1:]) if argv[:1] and argv[0] in KINDS else ("", argv)
    if not kind and not wants_help(argv):
        given = f"{argv[0]!r} is no benchmark" if argv else "no benchmark was named"
        raise UserError(f"{given}; write one of {', '.join(KINDS)} first")
    parsed = parse(rest, __doc__, FLAGS)
    if parsed is None:
        return 0
    for figures in benchmark(kind, parsed):
        print(json.dumps(figures), flush=True)
    return 0
