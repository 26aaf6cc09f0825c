"""Measure speed, memory use and padding, part by part; print one JSON object per line.

usage: retina-jax benchmark step --config=experiments/coco.py [--runs=5] [--steps=20]
           [--config.train.batch_size=16 ...]     training step on random images, per
           bucket (input shape)
       retina-jax benchmark seeds --config=… [--seeds=3]     training step of several seeds as one
           program, as with `ablate --together`, compared with a step of each in turn
       retina-jax benchmark predict --config=…    prediction step, from images to candidates
       retina-jax benchmark torchvision --config=…     training step and torchvision's, on one
           device and the first bucket (needs the extra: pip install 'retina_jax[torchvision]')
       retina-jax benchmark input --config=…      decode, scale, flip, pad: images/s per core,
           compared with a bare OpenCV loop and, if it is installed, torchvision
       retina-jax benchmark memory --config=… [--steps=10000]     host memory of the loader
       retina-jax benchmark export --config=…     exported models, compared with this program, per
           bucket, in float32 (needs the extra: pip install 'retina_jax[onnx]')
       retina-jax benchmark serve --workdir=RUN [--clients=8] [--batch-size=8]     latency, images/s
           and memory of servers with and without batching, over loopback; counts lost and wrong
           answers (needs the extra: pip install 'retina_jax[serve]')
       retina-jax benchmark depthwise --config=…  depthwise convolutions of the backbone: XLA's
           grouped convolution, and the form that this platform gets
       retina-jax benchmark padding --config=…    padded pixels by batching scheme, for
           simulated COCO image sizes

The pipelines, buckets or servers under comparison are timed in turn, RUNS times each, so that slow
drifts in machine speed affect all of them equally. The results are medians; the latencies of
`benchmark serve` are percentiles over all requests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from retina_jax.config.flags import PROCESSES, Flag, Parsed, parse, wants_help
from retina_jax.errors import UserError
from retina_jax.jobs import config_of_run, on_all_hosts

KINDS = (
    "step", "seeds", "predict", "torchvision", "input", "memory", "export", "serve", "depthwise",
    "padding",
)  # fmt: skip
COMPUTING = ("step", "seeds", "predict")
"""The kinds that all hosts of a run take part in."""
FLAGS = (
    Flag("runs", "number of timed runs per bucket or pipeline", 5, least=1),
    Flag("steps", "number of steps, or batches, per run", 20, least=1),
    Flag("classes", "number of classes in the random data", 80, least=1),
    Flag("seeds", "benchmark seeds: number of seeds", 3, least=2),
    Flag("workdir", "benchmark serve: folder of the run"),
    Flag("clients", "benchmark serve: number of simultaneous clients", 8, least=1),
    Flag("batch_size", "benchmark serve: maximum number of images per forward pass", 8, least=1),
    *PROCESSES,
)


def benchmark(kind: str, parsed: Parsed) -> Iterator[dict]:
    """Yields the results of one kind of benchmark."""
    from retina_jax.progress import Reporter
    from retina_jax.runs.fitting import not_fitted

    config, flags, report = parsed.config, parsed.flags, Reporter.on_stderr()
    if kind not in ("memory", "serve"):
        for line in not_fitted(config, f"benchmark {kind}"):
            report.note(line)
    if kind == "input":
        from retina_jax.benchmarks.input import time_input

        return time_input(config, flags.runs, flags.steps)
    if kind == "memory":
        from retina_jax.benchmarks.input import measure_memory
        from retina_jax.runs.fitting import fitted_to_data

        fit = fitted_to_data(config, report)
        fit.say(report)
        return measure_memory(fit.config, flags.steps)
    if kind == "export":
        from retina_jax.exporting.export import check_onnx

        check_onnx("benchmark export")
        from retina_jax.exporting.speed import time_exports

        return time_exports(config, flags.runs, flags.steps, flags.classes)
    if kind == "serve":
        if not flags.workdir:
            raise UserError("--workdir is missing; set it to the folder of a run")
        from retina_jax.jobs.serve import check_packages

        check_packages("benchmark serve")
        from retina_jax.serving.speed import time_serving

        return time_serving(flags.workdir, flags.batch_size, flags.runs, flags.steps, flags.clients)
    if kind == "depthwise":
        from retina_jax.benchmarks.depthwise import time_depthwise

        return time_depthwise(config, flags.runs)
    if kind == "torchvision":
        from retina_jax.benchmarks.peer import time_beside_torchvision

        return time_beside_torchvision(config, flags.runs, flags.steps, flags.classes)
    if kind == "padding":
        from retina_jax.benchmarks.padding import compare_padding

        return compare_padding(config)
    if kind == "seeds":
        from retina_jax.benchmarks.seeds import time_seeds

        return time_seeds(config, flags.seeds, flags.runs, flags.steps, flags.classes)
    from retina_jax.benchmarks.steps import time_steps

    return time_steps(kind, config, flags.runs, flags.steps, flags.classes)


def main(argv: list[str]) -> int:
    kind, rest = (argv[0], argv[1:]) if argv[:1] and argv[0] in KINDS else ("", argv)
    if not kind and not wants_help(argv):
        named = argv and not argv[0].startswith("-")
        problem = f"unknown benchmark {argv[0]!r}" if named else "a benchmark is missing"
        raise UserError(f"{problem}; the first argument must be one of {', '.join(KINDS)}")
    parsed = parse(rest, __doc__, FLAGS, config_of_run if kind == "serve" else None)
    if parsed is None:
        return 0
    if (
        kind in COMPUTING
    ):  # with a cache of programs, the first step of a second call is a restart's
        with on_all_hosts(parsed) as console:
            for figures in benchmark(kind, parsed):
                if not console.quiet:
                    print(json.dumps(figures), flush=True)
        return 0
    for figures in benchmark(kind, parsed):
        print(json.dumps(figures), flush=True)
    return 0
