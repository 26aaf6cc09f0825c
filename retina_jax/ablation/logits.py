"""Histograms of a run's logits on its evaluation split; memory does not depend on its size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from retina_jax import parallel
from retina_jax.config.values import target_arguments
from retina_jax.data.data_set import open_split
from retina_jax.data.loader import EvaluationLoader
from retina_jax.models import retinanet
from retina_jax.ops.anchors import pyramid_grids
from retina_jax.ops.losses import sigmoid_focal_loss
from retina_jax.ops.targets import assign_targets
from retina_jax.prepare.shapes import open_data_set
from retina_jax.training.checkpoint import weights_of
from retina_jax.training.workdir import read_config
from retina_jax.types import Array

LARGEST = 32.0
"""Logits are clipped to ± this value; beyond it the loss is practically linear, or 0."""
BINS = 1 << 14


@dataclasses.dataclass(frozen=True)
class LogitCounts:
    """Number of logits in each bin of ``x_t = y · x``, the signed logit of section 3."""

    foreground: Int[np.ndarray, "bins"]
    """Logits of the class of a foreground anchor."""
    background: Int[np.ndarray, "bins"]

    @property
    def signed(self) -> Float[np.ndarray, "bins"]:
        """The centre of each bin."""
        edges = np.linspace(-LARGEST, LARGEST, len(self.foreground) + 1)
        return (edges[1:] + edges[:-1]) / 2

    def losses(self, gamma: float) -> Float[np.ndarray, "bins"]:
        """The focal loss at the centre of each bin, without α."""
        labels = np.zeros(len(self.foreground), np.int32)
        signed = jnp.asarray(self.signed[:, None], jnp.float32)
        return np.asarray(sigmoid_focal_loss(signed, labels, 0.5, gamma))


def count_bins(
    signed: Float[Array, "*n"], counted: Bool[Array, "*n"], bins: int = BINS
) -> Int[Array, "bins"]:
    """Histogram of the ``counted`` values over ± `LARGEST`; int32, so up to 2³¹ values."""
    place = jnp.floor((signed + LARGEST) * (bins / (2 * LARGEST)))
    place = jnp.clip(place, 0, bins - 1).astype(jnp.int32)
    place = jnp.where(counted, place, bins)  # an extra bin, dropped below
    return jnp.bincount(place.reshape(-1), length=bins + 1)[:-1]


def count_logits(workdir: Path) -> LogitCounts:
    """Counts the logits of a run's best (else latest) checkpoint on its evaluation split."""
    config = read_config(workdir)
    directory = open_data_set(config.data.dir, config.data.name)
    split = open_split(directory, config.data.eval_split, config.data.labels)
    model = retinanet.build(config, len(split.class_names))
    variables = weights_of(workdir)
    target_options = target_arguments(config)

    @jax.jit
    def count(batch):
        images = retinanet.normalize_images(batch.images, batch.sizes, config.data)
        logits = model.apply(variables, images, train=False).joined().logits
        anchors = np.concatenate(retinanet.anchors_for(config, batch.images.shape[1:3]))
        grids = pyramid_grids(batch.images.shape[1:3])
        targets = jax.vmap(lambda truth: assign_targets(anchors, truth, grids, **target_options))(
            batch.ground_truth
        )
        is_label = targets.labels[..., None] == jnp.arange(logits.shape[-1])
        taken = (~targets.ignore & batch.example_mask[:, None])[..., None]
        signed = jnp.where(is_label, logits, -logits)
        return count_bins(signed, is_label & taken), count_bins(signed, ~is_label & taken)

    totals = np.zeros((2, BINS), np.int64)
    for batch in EvaluationLoader(split, config):
        totals += np.stack(parallel.fetch(count(batch)))
    return LogitCounts(*totals)
