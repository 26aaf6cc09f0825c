"""Times the two forms of a depthwise convolution: XLA's grouped one, and this platform's."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator

import jax

from retina_jax.config import resolve
from retina_jax.config.backbones import BACKBONES, InvertedKind
from retina_jax.config.shell import field_flag
from retina_jax.errors import UserError
from retina_jax.models.depthwise import depthwise_conv_3x3, grouped_convolution

FORMS = {"grouped": grouped_convolution, "chosen": depthwise_conv_3x3}


def layers_of(config) -> list[tuple[tuple[int, int, int, int], int]]:
    """Input shape ``(n, h, w, channels)`` and stride of each depthwise layer, without repetition.

    Raises `UserError` for a backbone without any.
    """
    model = config.model
    kind = BACKBONES[model.backbone]
    if not isinstance(kind, InvertedKind):
        raise UserError(
            f"config.model.backbone={model.backbone} has no depthwise convolutions; set "
            f"{field_flag('model.backbone', 'mobilenet_v2')}"
        )
    height, width = resolve(config).buckets[0]
    stride, before = 2, kind.channels(kind.stem, model.width)
    found = [(stride, before, 1)]
    before = kind.channels(kind.stem_block, model.width)
    for stage in kind.stages:
        first = True
        for published, blocks in stage:
            for _ in range(blocks):
                found.append((stride, kind.expansion * before, 2 if first else 1))
                stride, first = stride * (2 if first else 1), False
                before = kind.channels(published, model.width)
    batch = config.train.batch_size
    return [
        ((batch, math.ceil(height / s), math.ceil(width / s), channels), step)
        for s, channels, step in dict.fromkeys(found)
    ]


def time_depthwise(config, runs: int) -> Iterator[dict]:
    """Milliseconds of each layer, forward and with gradients; the forms alternate ``runs`` times.

    In float32, on one device.
    """
    for shape, stride in layers_of(config):
        keys = jax.random.split(jax.random.key(0), 2)
        inputs = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (3, 3, 1, shape[-1]))
        programs = {
            (name, kind): jax.jit(make(form, stride))
            for kind, make in (("forward", _forward), ("gradients", _gradients))
            for name, form in FORMS.items()
        }
        seconds: dict[tuple[str, str], list[float]] = {key: [] for key in programs}
        for program in programs.values():
            jax.block_until_ready(program(*inputs))  # compiles
        for _ in range(runs):
            for key, program in programs.items():
                started = time.perf_counter()
                jax.block_until_ready(program(*inputs))
                seconds[key].append(time.perf_counter() - started)
        yield {"timed": "depthwise", "input": list(shape), "stride": stride} | {
            f"{kind}_ms_{name}": round(1e3 * statistics.median(values), 2)
            for (name, kind), values in seconds.items()
        }


def _forward(form: Callable, stride: int) -> Callable:
    return lambda x, kernel: form(x, kernel, stride)


def _gradients(form: Callable, stride: int) -> Callable:
    return jax.grad(lambda x, kernel: (form(x, kernel, stride) ** 2).sum(), (0, 1))
