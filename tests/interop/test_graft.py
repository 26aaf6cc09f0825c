"""Weights replace initial ones: every name is accounted for."""

import numpy as np
import pytest

from retina_jax.errors import UserError
from retina_jax.interop.graft import BOX_LAYER, CLASS_LAYER, MisfitError, graft


def tree(classes=5, **extra):
    return {
        "params": {
            "backbone": {"kernel": np.ones((3, 3))},
            "fpn": {"p6": {"kernel": np.ones((3, 2))}},
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


def test_layers_of_classes_are_those_that_are_named():
    def with_boxes(classes):
        return tree(classes, box_head={"predict": {"kernel": np.ones((3, 4 * classes))}})

    with pytest.raises(MisfitError, match=r"params/box_head/predict/kernel .shape"):
        graft(with_boxes(5), with_boxes(80), "there")
    merged, stayed = graft(
        with_boxes(5), with_boxes(80), "there", of_classes=(CLASS_LAYER, BOX_LAYER)
    )
    assert stayed == ["params/class_head/predict/kernel", "params/box_head/predict/kernel"]
    assert merged["params"]["box_head"]["predict"]["kernel"].shape == (3, 20)


def test_a_class_layer_on_other_channels_is_no_other_number_of_classes():
    given = tree()
    given["params"]["class_head"]["predict"]["kernel"] = np.ones((4, 5))
    with pytest.raises(UserError, match="shape"):
        graft(tree(), given, "there")


def test_what_is_missing_left_over_or_misshapen_is_listed():
    given = tree(spare={"bias": np.ones(2)})
    given["params"]["backbone"]["kernel"] = np.ones((1, 1))
    del given["batch_stats"]["backbone"]["mean"]
    with pytest.raises(UserError) as caught:
        graft(tree(), given, "there", unknown=["roi_heads.weight"])
    message = str(caught.value)
    assert "params/backbone/kernel (shape (1, 1), requires (3, 3))" in message
    assert "batch_stats/backbone/mean (missing, requires (3,))" in message
    assert "params/spare/bias (not used)" in message
    assert "roi_heads.weight (unknown)" in message


def test_an_error_counts_what_it_does_not_show_and_keeps_all():
    with pytest.raises(MisfitError, match="and 22 more") as caught:
        graft(tree(), tree(), "there", unknown=[f"n{i}" for i in range(30)])
    assert len(caught.value.wrong) == 30


def test_a_backbone_alone_leaves_the_rest_fresh_by_group():
    given = tree()
    given["params"] = {"backbone": {"kernel": np.full((3, 3), 7.0)}}
    merged, stayed = graft(tree(), given, "there")
    assert stayed == ["fpn", "class_head"]
    np.testing.assert_array_equal(merged["params"]["backbone"]["kernel"], 7)
    np.testing.assert_array_equal(merged["params"]["fpn"]["p6"]["kernel"], 1)


def test_a_backbone_alone_must_be_whole():
    given = {"params": {"backbone": {"kernel": np.ones((3, 3))}}}
    with pytest.raises(UserError, match=r"batch_stats/backbone/mean .missing"):
        graft(tree(), given, "there")


def test_a_backbone_and_half_a_rest_is_refused():
    given = tree()
    del given["params"]["class_head"]
    with pytest.raises(UserError, match=r"params/class_head/predict/kernel .missing"):
        graft(tree(), given, "there")
