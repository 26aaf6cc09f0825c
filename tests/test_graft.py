"""Weights put in place of fresh ones: every name is accounted for."""

import numpy as np
import pytest

from retina_jax.errors import UserError
from retina_jax.interop.graft import graft


def tree(classes=5, **extra):
    return {
        "params": {
            "backbone": {"kernel": np.ones((3, 3))},
            "class_head": {"predict": {"kernel": np.ones((3, classes))}},
            **extra,
        },
        "batch_stats": {"backbone": {"mean": np.ones(3)}},
    }


def test_all_values_are_taken():
    given = tree()
    given["params"]["backbone"]["kernel"] = np.full((3, 3), 7.0)
    merged, stayed = graft(tree(), given, "there")
    assert stayed == []
    np.testing.assert_array_equal(merged["params"]["backbone"]["kernel"], 7)


def test_another_number_of_classes_keeps_all_but_the_last_layer():
    merged, stayed = graft(tree(5), tree(80), "there")
    assert stayed == ["params/class_head/predict/kernel"]
    assert merged["params"]["class_head"]["predict"]["kernel"].shape == (3, 5)


def test_what_is_missing_left_over_or_misshapen_is_listed():
    given = tree(spare={"bias": np.ones(2)})
    given["params"]["backbone"]["kernel"] = np.ones((1, 1))
    del given["batch_stats"]["backbone"]["mean"]
    with pytest.raises(UserError) as caught:
        graft(tree(), given, "there")
    message = str(caught.value)
    assert "params/backbone/kernel (shape (1, 1), wants (3, 3))" in message
    assert "batch_stats/backbone/mean (missing, wants (3,))" in message
    assert "params/spare/bias (left over)" in message
