"""The rows of the fields: complete, and every name they give is there."""

import pytest

from retina_jax.config.fields import (
    BOX_LOSSES,
    CLASSIFICATION_LOSSES,
    DEPENDENTS,
    FIELDS,
    default_config,
    depending,
)
from retina_jax.config.values import leaves
from retina_jax.ops import box_losses, losses


def test_names_are_unique():
    names = [field.name for field in FIELDS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_row_is_complete(field):
    assert field.meaning.strip()
    assert field.allowed.holds(field.default)
    assert set(field.depends.split()) <= set(DEPENDENTS)
    if field.allowed.rule:
        assert field.allowed.rule.startswith("must ")
    if field.allowed.fix is not None:
        assert field.allowed.holds(field.allowed.fix)


def test_the_default_config_has_every_row_and_no_more():
    assert leaves(default_config()) == {field.name: field.default for field in FIELDS}


def test_every_loss_and_the_fields_it_takes_are_there():
    fields = leaves(default_config())
    for function, taken in CLASSIFICATION_LOSSES.values():
        assert callable(getattr(losses, function))
        assert {f"loss.{name}" for name in taken} <= fields.keys()
    for function, compared in BOX_LOSSES.values():
        assert callable(getattr(box_losses, function))
        assert compared in ("deltas", "boxes")


def test_what_depends_on_a_field():
    """Weights keep their meaning on another schedule, not with other anchors."""
    weights, trajectory, scores = map(depending, DEPENDENTS)
    assert "anchors.ratios" in weights
    assert "optimizer.learning_rate" in trajectory
    assert "optimizer.learning_rate" not in weights
    assert "eval.nms_iou" in scores
    assert "eval.nms_iou" not in trajectory
    for name in ("train.log_every", "data.num_workers", "eval.pictures"):
        assert name not in {*weights, *trajectory, *scores}
