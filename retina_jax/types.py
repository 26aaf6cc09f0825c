"""The pytrees that cross floors, with their shapes.

n: images of a batch, m: padded boxes of an image, a: anchors, k: candidates or detections.
Boxes are ``[x1, y1, x2, y2]``, float32, pixels of the network's input, half-open.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Array = jax.Array | np.ndarray


@flax.struct.dataclass
class GroundTruth:
    """Boxes of one image (or, with a leading axis, of a batch), padded to m."""

    boxes: Float[Array, "*n m 4"]
    labels: Int[Array, "*n m"]
    valid: Bool[Array, "*n m"]
    """False marks padding."""
    is_crowd: Bool[Array, "*n m"]
    """A region of uncountable objects: its anchors are ignored, never background."""


@flax.struct.dataclass
class Batch:
    """What travels to the device for one step."""

    images: UInt8[Array, "*n h w 3"] | Float[Array, "*n h w 3"]
    """RGB; pixels beyond ``sizes`` are zeros."""
    sizes: Int[Array, "*n 2"]
    """Height and width of the picture inside the padded image."""
    original_sizes: Int[Array, "*n 2"]
    """Height and width of the image before it was scaled, pixels; a filler has its own size."""
    ground_truth: GroundTruth
    index: Int[Array, "*n"]
    """Row of the image in its split."""
    example_mask: Bool[Array, "*n"]
    """False marks a filler that completes an evaluation batch."""
    cut_away: Int[Array, "*n"]
    """Boxes of which augmentation left too little (``data.min_visible``) or nothing."""


@flax.struct.dataclass
class Targets:
    """What the losses of one image ask of each anchor."""

    labels: Int[Array, "*n a"]
    """Class of a foreground anchor, -1 elsewhere."""
    boxes: Float[Array, "*n a 4"]
    """Box of a foreground anchor, the anchor itself elsewhere."""
    deltas: Float[Array, "*n a 4"]
    """``boxes`` encoded against their anchors: 0 elsewhere."""
    foreground: Bool[Array, "*n a"]
    ignore: Bool[Array, "*n a"]
    """Neither foreground nor background: no classification loss."""


@flax.struct.dataclass
class Candidates:
    """The best-scored boxes of each level before NMS, a fixed number k per image."""

    boxes: Float[Array, "*n k 4"]
    scores: Float[Array, "*n k"]
    """0 marks an empty place."""
    labels: Int[Array, "*n k"]


@flax.struct.dataclass
class Detections:
    """What remains of one image after NMS, best first (NumPy, on the host).

    From `evaluation.detect` on, boxes are in pixels of the original image.
    """

    boxes: Float[np.ndarray, "k 4"]
    scores: Float[np.ndarray, "k"]
    labels: Int[np.ndarray, "k"]


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes; what a checkpoint holds."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    loss_normalizer: Float[Array, ""]
    """Moving average of the foreground anchors of a batch; moves with ``loss.normalizer=ema``."""
