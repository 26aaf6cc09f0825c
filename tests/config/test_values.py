"""Values that follow from fields, config.json of any version, and the comparison of two runs."""

import json
from pathlib import Path

import pytest

from experiments import coco, coco_tf_model_garden, custom, shapes
from retina_jax.config import default_config, resolve
from retina_jax.config.augmentations import FIELDS_OF_PRESETS, PRESETS
from retina_jax.config.fields import BY_NAME
from retina_jax.config.values import comparable, differences, from_json, leaves, to_json

PAPERS = ((800, 1344), (1344, 800))


@pytest.mark.parametrize(
    ("get_config", "expected"),
    [
        (default_config, PAPERS),
        (coco.get_config, PAPERS),
        (custom.get_config, ((256, 320), (320, 256))),
        (coco_tf_model_garden.get_config, ((640, 640),)),
        (shapes.get_config, ((128, 128),)),
    ],
    ids=["default", "coco", "custom", "coco_tf_model_garden", "shapes"],
)
def test_buckets_follow_from_the_sides(get_config, expected):
    assert resolve(get_config()).buckets == expected


def test_buckets_hold_the_largest_side_that_training_draws():
    config = default_config()
    config.data.short_side, config.data.long_side = 100, 170
    assert resolve(config).buckets == ((128, 192), (192, 128))
    config.data.train_short_sides = (80, 150)
    assert resolve(config).buckets == ((160, 192), (192, 160))
    config.data.train_short_sides = (200,)
    assert resolve(config).buckets == ((224, 224),)
    config.data.buckets = ((64, 64),)
    assert resolve(config).buckets == ((64, 64),)


def written(config):
    """Its config.json, read."""
    return json.loads(json.dumps(to_json(config, resolve(config).to_json())))


def test_a_config_comes_back_from_its_json():
    config = default_config()
    config.data.buckets = ((64, 96), (96, 64))
    config.data.train_short_sides = (48, 64)
    config.optimizer.learning_rate = 0.1 + 0.2
    config.model.class_specific_boxes = True
    back = from_json(written(config))
    assert leaves(back) == leaves(config)
    assert back.is_locked
    assert isinstance(back.data.buckets[0], tuple)


def test_a_folder_of_data_comes_back_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = default_config()
    config.data.dir = "data"
    content = written(config)
    assert content["data"]["dir"] == "data", "the field stands there as it was asked for"
    monkeypatch.chdir("/")
    assert from_json(content).data.dir == str(tmp_path / "data")


def test_fields_that_came_or_went_since():
    content = written(default_config())
    del content["loss"]["alpha"]
    content["loss"]["gone"] = 1
    content["train"]["steps"] = 7
    config = from_json(content)
    assert config.loss.alpha == default_config().loss.alpha
    assert config.train.steps == 7
    assert "gone" not in config.loss


def test_a_config_of_the_previous_version_equals_todays_default():
    """It had no "resolved", and named the buckets that follow from the sides today."""
    before = json.loads(json.dumps(default_config().to_dict()))
    before["data"]["buckets"] = [list(bucket) for bucket in PAPERS]
    assert default_config().data.buckets == ()
    assert differences(comparable(before), comparable(default_config())) == {}


def test_two_configs_differ_in_what_was_set():
    one, other = default_config(), default_config()
    other.train.steps = 5
    other.data.short_side = 400
    changed = differences(comparable(one), comparable(other))
    assert list(changed) == ["data.short_side", "data.buckets", "train.steps"]
    assert changed["train.steps"] == (90_000, 5)
    assert changed["data.buckets"] == ([[800, 1344], [1344, 800]], [[416, 1344], [1344, 416]])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_valid_values_of_the_fields_they_may_set(name):
    assert PRESETS[name].keys() <= set(FIELDS_OF_PRESETS)
    for field, value in PRESETS[name].items():
        assert BY_NAME[field].allowed.holds(value)
        assert type(value) is type(BY_NAME[field].default)


def test_a_preset_sets_the_fields_that_the_user_does_not():
    config = default_config()
    plain = resolve(config).augmentation
    assert plain == {name: BY_NAME[name].default for name in FIELDS_OF_PRESETS}
    config.data.augmentation = "aerial"
    assert resolve(config).augmentation == plain | PRESETS["aerial"]
    config.data.scale_range, config.data.flip = (0.5, 1.5), False
    own = {"data.scale_range": (0.5, 1.5), "data.flip": False}
    assert resolve(config).augmentation == plain | PRESETS["aerial"] | own


def test_a_preset_equals_its_values_and_keeps_those_that_a_run_had(monkeypatch):
    preset, same = default_config(), default_config()
    preset.data.augmentation = "aerial"
    same.update_from_flattened_dict(PRESETS["aerial"])
    assert differences(comparable(preset), comparable(same)) == {}
    assert differences(comparable(comparable(written(preset))), comparable(same)) == {}
    content = written(preset)
    assert content["data"]["augmentation"] == "aerial"
    assert content["data"]["turn"] is False, "the field stands there as it was asked for"
    assert content["resolved"]["data.turn"] is True
    changed = differences(comparable(default_config()), comparable(preset))
    assert changed.keys() == {f for f, v in PRESETS["aerial"].items() if v != BY_NAME[f].default}
    monkeypatch.setitem(PRESETS["aerial"], "data.scale_range", (0.1, 2.0))  # of a later version
    changed = differences(comparable(content), comparable(preset))
    assert changed == {"data.scale_range": ([0.8, 1.25], [0.1, 2.0])}


def test_the_same_folder_of_data_by_another_path_is_no_difference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, other = default_config(), default_config()
    one.data.dir, other.data.dir = "data", str(Path(tmp_path) / "data")
    assert differences(comparable(one), comparable(other)) == {}


def test_a_seed_of_the_data_that_is_the_runs_changes_nothing():
    one, other = default_config(), default_config()
    one.seed = other.seed = other.data.seed = 3
    assert differences(comparable(one), comparable(other)) == {}
    other.data.seed = 0
    assert differences(comparable(one), comparable(other)) == {"data.seed": (-1, 0)}
    assert resolve(one).data_seed == 3
    assert resolve(other).data_seed == 0
