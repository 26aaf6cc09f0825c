"""Picture sizes like COCO's, and what each scheme wastes on them."""

import numpy as np
import pytest

from experiments.coco import get_config
from retina_jax.benchmarks.padding import _per_batch, coco_sizes, compare_padding


def test_sizes_are_as_published():
    sizes = coco_sizes()
    ratio, pixels = sizes[:, 0] / sizes[:, 1], sizes.prod(axis=1)
    assert ((ratio >= 0.6) & (ratio <= 1.5)).mean() == pytest.approx(0.9, abs=0.02)
    assert ((pixels >= 167_500) & (pixels <= 355_840)).mean() == pytest.approx(0.9, abs=0.02)
    assert sizes.max() == 640


def test_padding_of_a_batch_by_hand():
    # two of 32 × 64 and 64 × 32 in 64 × 64: half is wasted; apart, nothing
    sizes = np.array([[32, 64], [64, 32]] * 4)
    rng = np.random.default_rng(0)
    apart = (sizes[:, 1] > sizes[:, 0]).astype(int)
    assert _per_batch(sizes, apart, 2, rng) == (0.0, 2)
    together, _ = _per_batch(sizes, np.zeros(8), 8, rng)
    assert together == pytest.approx(0.5)


def test_two_buckets_waste_a_third_of_what_a_square_does():
    found = {figures["scheme"]: figures for figures in compare_padding(get_config())}
    ours = found["the experiment's buckets"]
    assert ours["programs"] == 2
    assert ours["waste"] < found["one square"]["waste"] / 3
    assert found["each batch of 16 to its largest"]["programs"] > 20
