"""The function that is exported, and its StableHLO.

``(images, sizes) -> {"boxes", "scores", "labels"}`` for one bucket: images ``[n, h, w, 3]`` (RGB,
uint8, or float32 with ``data.float_pixels``; padding is ignored) with sizes ``[n, 2]`` (height and
width without padding, int32). Boxes ``[n, k, 4]`` are xyxy in pixels of the input, highest score
first; ``k`` is ``eval.max_detections``, and a score of 0 marks padding. Normalisation, the network,
decoding and NMS are inside.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from retina_jax.evaluation.predict_step import make_detection_step
from retina_jax.files import atomic_write
from retina_jax.prediction.load import stablehlo_program
from retina_jax.prediction.network import Network

PLATFORMS = ("cpu", "cuda", "tpu")
Program = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
"""A loaded exported model: images and sizes to detections."""


def input_shapes(
    network: Network, bucket: tuple[int, int], batch_size: int
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Images and sizes; a batch of any size if ``batch_size`` is 0."""
    (batch,) = (batch_size,) if batch_size else export.symbolic_shape("b")
    pixels = jnp.float32 if network.config.data.float_pixels else jnp.uint8
    images = jax.ShapeDtypeStruct((batch, *bucket, 3), pixels)
    return images, jax.ShapeDtypeStruct((batch, 2), jnp.int32)


def write(network: Network, bucket: tuple[int, int], batch_size: int, path: Path) -> None:
    """Writes the program as StableHLO, with the weights as constants."""
    step = make_detection_step(network.model, network.config)

    def detect(images: jax.Array, sizes: jax.Array) -> dict[str, jax.Array]:
        found = step(network.variables, images, sizes)
        return {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}

    shapes = input_shapes(network, bucket, batch_size)
    exported = export.export(jax.jit(detect), platforms=PLATFORMS)(*shapes)
    with atomic_write(path) as temporary:
        temporary.write_bytes(exported.serialize())


def load(path: Path) -> Program:
    """The program in a file."""
    return stablehlo_program(path.read_bytes())
