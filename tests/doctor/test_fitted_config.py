"""A config fitted to a data set, and what is said about it."""

import numpy as np
import pytest
from made_data import image_of, split_of

from retina_jax.config import default_config, fields_set, validate
from retina_jax.config.values import changed_config
from retina_jax.doctor.anchor_advice import ANCHORS
from retina_jax.doctor.examine import examine, short_form
from retina_jax.doctor.fit import FITTED, fit
from retina_jax.errors import UserError


def boxes_in(seed, count, side):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 90 - side, (count, 2))
    return np.concatenate([corner, corner + side * rng.uniform(0.8, 1.2, (count, 2))], axis=1)


@pytest.fixture(scope="module")
def splits():
    train = [image_of(i, boxes_in(i, 4, 20), np.arange(4) % 2) for i in range(30)]
    evaluation = [image_of(100 + i, boxes_in(i, 13, 20)) for i in range(2)]
    return split_of("train", train), split_of("validation", evaluation)


def config_of(**fields):
    config = default_config()
    config.data.fit = True
    config.train.batch_size = 8
    return changed_config(config, fields)


def free_in(config):
    return frozenset(FITTED) - fields_set(config)


def test_every_field_is_fitted_and_said_as_a_flag(splits):
    config = config_of()
    found = fit(*splits, config, free_in(config))
    assert list(found.fields) == list(FITTED)
    effective = changed_config(config, found.fields)
    validate(effective)
    assert found.fields["data.max_boxes"] == 16  # 13, of the evaluation split
    assert found.fields["data.buckets"] == ((192, 320),)  # twice 96 × 160
    checks = {finding.check for finding in short_form(*splits, effective)}
    assert not checks & {"anchor_recall", "buckets", "max_boxes"}
    said = "\n".join(found.lines)
    for name in FITTED:
        assert f"--config.{name}=" in said
    assert "within reach" in said


def test_the_doctor_suggests_what_a_fit_chooses(splits):
    config = config_of(**{"data.short_side": 96, "data.long_side": 160})
    found = fit(*splits, config, free_in(config)).fields
    config.data.fit = False
    suggestion = examine(*splits, config).suggestion
    assert suggestion.fields
    for name in ANCHORS:
        group, leaf = name.split(".")
        assert suggestion.fields.get(name, config[group][leaf]) == found[name]


def test_training_says_once_what_is_out_of_reach():
    split = split_of("train", [image_of(i, boxes_in(i, 4, 8)) for i in range(30)])
    config = config_of(**{"data.pixel_budget": 64 * 96})
    fields = fit(split, split, config, free_in(config)).fields
    effective = changed_config(config, fields)
    for fitted in ((), fields):
        findings = short_form(split, split, effective, fitted=fitted)
        said = [finding for finding in findings if finding.check == "anchor_recall"]
        assert bool(said) != bool(fitted)


def test_fitted_buckets_are_not_called_too_small():
    """The short side is that of the bucket that shows it largest; others show it smaller."""
    sizes = [(300, 480)] * 12 + [(400, 500)] * 12 + [(600, 400)] * 12
    images = [image_of(i, boxes_in(i, 2, 60), size=size) for i, size in enumerate(sizes)]
    split = split_of("train", images)
    config = config_of(**{"data.pixel_budget": 320 * 256})
    fields = fit(split, split, config, free_in(config)).fields
    effective = changed_config(config, fields)
    for fitted in ((), ("train.steps",), fields):
        for findings in (
            short_form(split, split, effective, fitted=fitted),
            examine(split, split, effective, fitted=fitted).findings,
        ):
            said = [f for f in findings if "smaller than data.short_side" in f.message]
            assert bool(said) != ("data.buckets" in fitted)


def test_with_atss_the_anchors_stay_and_the_lines_say_why(splits):
    config = config_of(**{"matching.kind": "atss"})
    found = fit(*splits, config, free_in(config))
    assert found.fields.keys() == {n for n in FITTED if not n.startswith("anchors.")}
    assert any(line.startswith("anchors: unchanged, because") for line in found.lines)


def test_what_is_set_stays_even_at_its_default(splits):
    config = config_of(**{"anchors.scale": 4.0, "train.steps": 90_000, "data.max_boxes": 100})
    found = fit(*splits, config, free_in(config))
    assert not found.fields.keys() & {"anchors.scale", "train.steps", "data.max_boxes"}
    assert found.fields["eval.every"] == 9000


def test_boxes_out_of_reach_are_named_with_the_budget_that_reaches_them():
    small = [image_of(i, boxes_in(i, 4, 10)) for i in range(30)]
    large = [image_of(i, boxes_in(i, 2, 40), [1, 1], size=(96, 160)) for i in range(30, 40)]
    split = split_of("train", small + large)
    config = config_of(**{"data.pixel_budget": 64 * 96})
    lines = fit(split, split, config, free_in(config)).lines
    (line,) = [line for line in lines if line.startswith("out of reach")]
    assert "cat (" in line
    assert "--config.data.pixel_budget=" in line


def test_a_split_without_boxes_keeps_its_anchors():
    split = split_of("train", [image_of(i, []) for i in range(3)])
    config = config_of()
    fields = fit(split, split, config, free_in(config)).fields
    assert "anchors.scale" not in fields
    assert fields["data.max_boxes"] == 8


def test_a_split_without_images_is_refused():
    empty = split_of("train", [])
    with pytest.raises(UserError, match="is empty"):
        fit(empty, empty, config_of(), frozenset(FITTED))
