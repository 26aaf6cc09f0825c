"""Times exported programs against this program, on random images and weights."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from retina_jax import parallel
from retina_jax.config import resolve
from retina_jax.evaluation.nms import Rule, suppress
from retina_jax.evaluation.predict_step import make_predict_step
from retina_jax.exporting import onnx_model, program
from retina_jax.models import retinanet
from retina_jax.prediction.network import Network
from retina_jax.training.optimizer import build_optimizer
from retina_jax.training.step import init_state
from retina_jax.training.workdir import Classes


def untrained(config: ml_collections.ConfigDict, classes: int) -> Network:
    """A network with initial weights."""
    model = retinanet.build(config, classes)
    state = jax.device_get(init_state(model, build_optimizer(config), config))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    names = Classes(tuple(f"class {i}" for i in range(classes)), tuple(range(1, classes + 1)))
    return Network(config, names, variables, None, "initial weights")


def own_program(network: Network) -> program.Program:
    """Detection as in evaluation: the network on one device, NMS on the host."""
    devices, rule = parallel.Devices.local(1), Rule.of(network.config.eval)
    step = devices.predict_step(make_predict_step(network.model, network.config))
    variables = devices.replicate(network.variables)

    def run(images: np.ndarray, sizes: np.ndarray) -> Any:
        outputs = step(variables, *devices.shard((images, sizes)))
        candidates = parallel.join(parallel.fetch(outputs))
        every = (jax.tree.map(lambda x, i=i: x[i], candidates) for i in range(len(images)))
        return [suppress(one, rule) for one in every]

    return run


def time_exports(
    config: ml_collections.ConfigDict, runs: int, steps: int, classes: int
) -> Iterator[dict[str, Any]]:
    """Images per second for each bucket; the programs are timed in turn, ``runs`` times each.

    The batch size is ``eval.batch_size``, and the precision is float32 for all.
    """
    config = config.copy_and_resolve_references()
    config.train.precision = "float32"
    network, size = untrained(config, classes), config.eval.batch_size
    rng = np.random.default_rng(0)
    for bucket in resolve(config).buckets:
        images = rng.integers(0, 256, (size, *bucket, 3), dtype=np.uint8)
        inputs = images, np.tile(np.array([bucket], np.int32), (size, 1))
        programs, megabytes = {"retina_jax": own_program(network)}, {}
        with tempfile.TemporaryDirectory() as folder:
            for kind, module in (("stablehlo", program), ("onnx", onnx_model)):
                path = Path(folder) / f"model.{kind}"
                module.write(network, bucket, size, path)
                megabytes[kind] = round(path.stat().st_size / 1e6, 1)
                programs[kind] = module.load(path)
        rates = _rates(programs, inputs, runs, steps)
        yield {
            "timed": "export",
            "devices": parallel.Devices.local(1).describe(),
            "backbone": config.model.backbone,
            "input": list(bucket),
            "batch_size": size,
            "precision": "float32",
            "images_per_second": {name: round(rate, 2) for name, rate in rates.items()},
            "onnx_over_retina_jax": round(rates["onnx"] / rates["retina_jax"], 2),
            "megabytes": megabytes,
        }


def _rates(
    programs: dict[str, Callable[..., Any]], inputs: tuple[np.ndarray, ...], runs: int, steps: int
) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for run in programs.values():
        jax.block_until_ready(run(*inputs))  # compiles
    for _ in range(runs):
        for name, run in programs.items():
            started = time.perf_counter()
            for _ in range(steps):
                jax.block_until_ready(run(*inputs))
            seconds[name].append((time.perf_counter() - started) / steps)
    return {name: len(inputs[0]) / statistics.median(taken) for name, taken in seconds.items()}
