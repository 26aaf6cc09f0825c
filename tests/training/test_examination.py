"""What an examined step reports, with a small network: sums, micro-batches, order of modules."""

import jax
import numpy as np
import pytest
from small_network import build

from retina_jax.benchmarks.steps import random_batch
from retina_jax.training.examination import call_names, make_examination, spread
from retina_jax.training.optimizer import build_optimizer
from retina_jax.training.step import init_state


def test_values_that_are_not_finite_are_counted_for_each_image():
    found = spread([np.array([[1.0, -3.0], [np.nan, 2.0]]), np.array([[2.0], [np.inf]])])
    np.testing.assert_array_equal(found.not_finite, [0, 2])
    np.testing.assert_array_equal(found.largest, [3.0, 2.0])


def test_a_module_that_is_called_for_each_level_is_named_with_it():
    assert call_names(["fpn", *["head"] * 5, "fpn"]) == [
        "fpn", "head at P3", "head at P4", "head at P5", "head at P6", "head at P7", "fpn",
    ]  # fmt: skip


@pytest.mark.parametrize("normalizer", ["foreground", "per_image"])
def test_shares_of_images_make_up_the_loss_whatever_the_micro_batches(tiny_config, normalizer):
    tiny_config.model.norm = "frozen"
    tiny_config.loss.normalizer = normalizer
    if normalizer == "per_image":  # and losses that not every run has
        tiny_config.model.centerness = True
        tiny_config.matching.kind = "atss"
    model = build(tiny_config, 5)
    state = init_state(model, build_optimizer(tiny_config), tiny_config)
    batch = random_batch(tiny_config, (128, 128), 4, 5)
    found = {}
    for count in (1, 2):
        tiny_config.train.accumulate = count
        examine, names = make_examination(model, tiny_config)
        unchanged, found[count] = jax.jit(examine)(state, batch)
        layers = ["classes", "boxes", *["centerness"] * tiny_config.model.centerness]
        assert names == ["conv", "norm", *layers * 5, "logits and boxes"]
        assert int(unchanged.step) == 0
    one, two = found[1], found[2]
    np.testing.assert_allclose(one.classification.sum(), one.parts.classification, rtol=1e-5)
    np.testing.assert_allclose(one.box.sum(), one.parts.box, rtol=1e-5)
    assert one.foreground.sum() == one.parts.foreground > 0
    assert list(one.extra) == ["centerness"] * tiny_config.model.centerness
    for name, of_images in one.extra.items():
        np.testing.assert_allclose(of_images.sum(), one.parts.extra[name], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)
