"""The pytrees that packages exchange, with their shapes.

n: images per batch, m: boxes per image including padding, a: anchors, k: candidates or detections.
Boxes are ``[x1, y1, x2, y2]``, float32, half-open, in pixels of the network input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Array = jax.Array | np.ndarray


@flax.struct.dataclass
class GroundTruth:
    """Boxes of one image, padded to m; a batch has a leading axis."""

    boxes: Float[Array, "*n m 4"]
    labels: Int[Array, "*n m"]
    valid: Bool[Array, "*n m"]
    """False marks padding."""
    is_crowd: Bool[Array, "*n m"]
    """Regions of uncountable objects: their anchors are ignored, never background."""

    @classmethod
    def empty(cls, *shape: int) -> GroundTruth:
        """NumPy arrays without a box; ``shape``: m, or n and m."""
        return cls(
            boxes=np.zeros((*shape, 4), np.float32),
            labels=np.zeros(shape, np.int32),
            valid=np.zeros(shape, bool),
            is_crowd=np.zeros(shape, bool),
        )


@flax.struct.dataclass
class Batch:
    """The input of one step."""

    images: UInt8[Array, "*n h w 3"] | Float[Array, "*n h w 3"]
    """RGB; pixels beyond ``sizes`` are 0."""
    sizes: Int[Array, "*n 2"]
    """Height and width of the image without its padding, pixels."""
    original_sizes: Int[Array, "*n 2"]
    """Height and width of the image before scaling, pixels: of the turned image if ``data.turn``
    turned it. For a filler, the size of the input."""
    ground_truth: GroundTruth
    index: Int[Array, "*n"]
    """Row of the image in its split."""
    example_mask: Bool[Array, "*n"]
    """False marks a filler that pads an evaluation batch."""
    cut_away: Int[Array, "*n"]
    """Number of boxes that augmentation removed (see ``data.min_visible``)."""


@flax.struct.dataclass
class Predictions:
    """The output of the network, float32: for each field, a list over P3 to P7.

    After `joined`, each field is one array instead.
    """

    logits: Sequence[Float[Array, "*n a c"]]
    """Of the classes; with softmax, background is an additional last class."""
    box_outputs: Sequence[Float[Array, "*n a k v"]]
    """Encoded boxes, see `ops.distribution.decode_outputs`; k is 1 or the number of classes. v is 4
    for deltas; with ``loss.box=dfl``, four times the number of values of a distribution."""
    centerness: Sequence[Float[Array, "*n a"]] | None = None
    """Logit of the centerness of each anchor's box; None without ``model.centerness``."""

    def joined(self) -> Predictions:
        """All levels of a batch in one array per field: ``logits [n, a, c]`` and so on."""
        return jax.tree.map(
            lambda levels: jnp.concatenate(levels, axis=1),
            self,
            is_leaf=lambda x: isinstance(x, (list, tuple)),
        )


@flax.struct.dataclass
class Targets:
    """Training targets of the anchors of one image."""

    labels: Int[Array, "*n a"]
    """Class of a foreground anchor, -1 otherwise."""
    boxes: Float[Array, "*n a 4"]
    """Matched box of a foreground anchor, the anchor itself otherwise."""
    deltas: Float[Array, "*n a 4"]
    """``boxes`` encoded relative to their anchors: 0 where not foreground."""
    foreground: Bool[Array, "*n a"]
    ignore: Bool[Array, "*n a"]
    """Neither foreground nor background: no classification loss."""


@flax.struct.dataclass
class Candidates:
    """The highest-scoring boxes of each level before NMS, a fixed number k per image."""

    boxes: Float[Array, "*n k 4"]
    scores: Float[Array, "*n k"]
    """0 marks padding."""
    labels: Int[Array, "*n k"]


@flax.struct.dataclass
class Detections:
    """The detections of one image after NMS, highest score first (NumPy, on the host).

    After `evaluation.detect`, boxes are in pixels of the original image.
    """

    boxes: Float[np.ndarray, "k 4"]
    scores: Float[np.ndarray, "k"]
    labels: Int[np.ndarray, "k"]


@flax.struct.dataclass
class TrainState:
    """The state that a training step updates and a checkpoint stores."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    loss_normalizer: Float[Array, ""]
    """Moving average of the foreground anchors per batch; changes with ``loss.normalizer=ema``."""
    averaged: Any = None
    """Moving average of ``params`` and ``batch_stats``, as a dict of both; None without
    ``train.ema``, so that the tree is that of a run that keeps none."""
    rate_factor: Float[Array, ""] | None = None
    """What the plateau schedule multiplies the learning rate by; None with the other schedules."""
