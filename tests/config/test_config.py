"""Fields: every experiment is valid; what cannot work is refused by name."""

import importlib.util
from pathlib import Path

import pytest

from retina_jax.config import default_config, leaves, notices, resolve, validate
from retina_jax.config.fields import BY_NAME
from retina_jax.config.notices import NEEDS
from retina_jax.errors import UserError

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.py"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiments_are_valid_and_say_their_command(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    validate(module.get_config())
    assert f"--config=experiments/{path.name}" in module.__doc__


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train.steps", 0),
        ("train.batch_size", -8),
        ("optimizer.learning_rate", float("nan")),
        ("optimizer.momentum", 1.5),
        ("loss.gamma", -1.0),
        ("loss.alpha", 2.0),
        ("loss.box", "giou2"),
        ("loss.classification", "hinge"),
        ("loss.normalizer", "none"),
        ("loss.ohem_examples", 0),
        ("model.frozen_stages", 6),
        ("model.norm_momentum", 1.5),
        ("data.pixel_order", "GBR"),
        ("data.labels", "names"),
        ("data.augmentation", "heavy"),
        ("data.repeat_rare", -0.1),
        ("eval.cut_boxes", "never"),
        ("optimizer.name", "lars"),
        ("model.backbone", "resnet19"),
        ("model.norm", "layer"),
        ("model.prior", 0.0),
        ("matching.background_iou", 0.9),
        ("data.long_side", 100),
        ("data.buckets", ((800, 1333),)),
        ("data.buckets", (800, 1344)),
        ("data.buckets", ((800, 1344, 3),)),
        ("data.buckets", ((64, 64), (64, 64))),
        ("data.std", (1.0, 0.0, 1.0)),
        ("data.std", ("a", 1.0, 1.0)),
        ("optimizer.decay_at", ("soon",)),
        ("optimizer.learning_rate", float("inf")),
        ("coder.weights", (1.0, 1.0)),
        ("anchors.ratios", ()),
        ("anchors.ratios", (0.0, 1.0)),
        ("eval.engine", "mine"),
        ("train.precision", "float16"),
        ("train.patience", -1),
        ("optimizer.schedule", "linear"),
        ("optimizer.plateau_patience", 0),
    ],
)
def test_impossible_values_are_refused_with_field_value_and_fix(field, value):
    config = default_config()
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as caught:
        validate(config)
    message = str(caught.value)
    assert message.startswith(f"config.{field}={value!r} ")
    assert "set --config." in message
    assert "\n" not in message


def test_fields_that_exclude_each_other():
    config = default_config()
    config.loss.classification, config.loss.gamma = "focal_star", 0.0
    with pytest.raises(UserError, match=r"loss.gamma=0.0 must be above 0 for focal_star"):
        validate(config)
    config = default_config()
    config.model.backbone, config.model.stride_in_1x1 = "resnet34", True
    with pytest.raises(UserError, match=r"stride_in_1x1=True needs bottlenecks, which resnet34"):
        validate(config)
    config = default_config()
    config.loss.box, config.model.class_specific_boxes = "dfl", True
    with pytest.raises(UserError, match=r"class_specific_boxes=True is not available with .*=dfl"):
        validate(config)
    config = default_config()
    config.loss.box, config.loss.dfl_bins = "dfl", 4  # 4 · 2^⅔ · √2 / 2 = 4.49
    with pytest.raises(UserError, match=r"whose sides are 4.5 strides .*=16$"):
        validate(config)
    config.loss.dfl_bins = 5
    validate(config)
    config = default_config()
    config.loss.classification, config.model.centerness = "qfl", True
    with pytest.raises(UserError, match=r"centerness=True is not available with .*=qfl"):
        validate(config)
    config = default_config()
    config.train.patience = 2
    validate(config)
    config.optimizer.schedule = "plateau"
    refused = r"patience=2 would end training before .* decays .*; set --config\.train\.patience=6$"
    with pytest.raises(UserError, match=refused):
        validate(config)
    config.train.patience = 3
    validate(config)


def test_a_field_of_the_matching_rule_that_is_not_in_use_is_refused():
    for kind, field, value in (
        ("atss", "foreground_iou", 0.6), ("atss", "low_quality", False),
        ("iou", "atss_candidates", 15),
    ):  # fmt: skip
        config = default_config()
        config.matching.kind = kind
        validate(config)
        config.matching[field] = value
        refused = rf"matching\.{field}={value} has no effect with matching\.kind={kind}, .*; set --"
        with pytest.raises(UserError, match=refused):
            validate(config)
    config = default_config()
    config.matching.kind, config.matching.background_iou = "atss", 0.5  # of crowds
    validate(config)


def test_fixes_that_are_offered_work():
    config = default_config()
    config.data.buckets = ((800, 1333), (20, 33))
    with pytest.raises(UserError, match=r"set --config.data.buckets='\(\(800,1344\),\(32,64\)\)'"):
        validate(config)


def test_learning_rate_follows_the_batch():
    config = default_config()
    config.train.batch_size = 4
    assert resolve(config).learning_rate == pytest.approx(0.0025)
    assert resolve(config).anchors_per_place == 9


def test_notices_say_what_will_surprise():
    config = default_config()
    config.train.steps = 500
    config.model.frozen_stages = 2
    text = "\n".join(notices(config))
    assert "warmup_steps=1000" in text
    assert "never decays" in text
    assert "norm=frozen" in text
    assert "frozen_stages=2 without model.init_from" in text


def test_notices_say_what_has_too_few_evaluations_to_act():
    config = default_config()
    config.train.steps, config.train.patience, config.eval.every = 1000, 3, 250
    (line,) = (line for line in notices(config) if "patience" in line)
    assert line == (
        "train.patience=3 needs 4 evaluations before the last step; there are 3 (eval.every=250, "
        "train.steps=1000): training never ends early; set --config.eval.every=249 or less"
    )
    config.eval.every = 249
    assert not any("patience" in line for line in notices(config))
    config.optimizer.schedule = "plateau"
    assert not any("patience" in line for line in notices(config))
    config.eval.every = 0
    text = "\n".join(notices(config))
    assert "training never ends early; set --config.eval.every=249 or less" in text
    assert "plateau_patience=2 needs 3 evaluations" in text
    assert "learning rate never decays; set --config.eval.every=333 or less" in text


def test_leaves_name_every_field():
    names = leaves(default_config())
    assert names["train.steps"] == 90_000
    assert names["coder.weights"] == (1.0, 1.0, 1.0, 1.0)
    relied_on = "seed data.dir data.name data.buckets model.init_from loss.alpha eval.every".split()
    for field in relied_on:
        assert field in names


def test_notices_name_fields_that_nothing_reads():
    config = default_config()
    config.loss.alpha, config.loss.gamma = 0.5, 1.0
    config.coder.weights = (10.0, 10.0, 5.0, 5.0)
    assert not any("no effect" in line for line in notices(config))
    config.loss.classification, config.loss.box = "qfl", "dfl"
    assert [line for line in notices(config) if "no effect" in line] == [
        "coder.weights=(10.0, 10.0, 5.0, 5.0) has no effect with loss.box=dfl",
        "loss.alpha=0.5 has no effect with loss.classification=qfl",
    ]


def test_what_a_field_needs_are_values_of_fields():
    for name, (needed, values) in NEEDS.items():
        assert name in BY_NAME
        assert all(BY_NAME[needed].allowed.holds(value) for value in values), name
