"""Cumulative loss from histograms: the same curve as from every logit, in bounded memory."""

import jax
import numpy as np

from retina_jax.ablation.figures import cumulative_share
from retina_jax.ablation.logits import BINS, LARGEST, LogitCounts, count_bins
from retina_jax.ops.losses import sigmoid_focal_loss


def test_bins_count_every_value_once_and_clip_the_extremes():
    signed = np.array([-1e30, -LARGEST, -0.001, 0.001, LARGEST, 1e30], np.float32)
    counts = np.asarray(count_bins(signed, np.ones(6, bool), 4))
    assert counts.tolist() == [2, 1, 1, 2]
    assert np.asarray(count_bins(signed, np.arange(6) < 2, 4)).tolist() == [2, 0, 0, 0]


def test_the_curve_is_that_of_every_logit():
    signed = np.random.default_rng(0).normal(3, 2, 20_000).astype(np.float32)
    counts = np.asarray(count_bins(signed, np.ones(len(signed), bool)))
    counted = LogitCounts(counts, counts)
    for gamma in (0.0, 2.0):
        labels = np.zeros(len(signed), np.int32)
        every = np.asarray(sigmoid_focal_loss(signed[:, None], labels, 0.5, gamma))
        ours = cumulative_share(counted.losses(gamma), counts)
        for expected, value in zip(cumulative_share(every), ours, strict=True):
            np.testing.assert_allclose(value, expected, atol=2e-3)


def test_memory_does_not_grow_with_the_number_of_logits():
    """What a batch leaves on the host is two arrays of bins, whatever its size."""
    for images in (1, 1000):
        logits = jax.ShapeDtypeStruct((images, 1000, 80), np.float32)
        counted = jax.ShapeDtypeStruct(logits.shape, np.bool_)
        assert jax.eval_shape(count_bins, logits, counted).shape == (BINS,)
