"""A config remembers which fields were set, even to their default."""

import copy
import json
import pickle

import ml_collections
import pytest

from retina_jax.config import default_config, fields_set
from retina_jax.config.flags import Flag, parse
from retina_jax.config.values import (
    FITTED,
    changed_config,
    comparable,
    differences,
    from_json,
    leaves,
    resolve,
    to_json,
)

EXPERIMENT = """
from retina_jax.config import default_config
def get_config():
    config = default_config()
    config.anchors.scale = 4.0  # the default
    config.data.fit = True
    return config
"""


def test_a_new_config_has_nothing_set():
    assert fields_set(default_config()) == set()


@pytest.mark.parametrize(
    "set_it",
    [
        lambda c: setattr(c.anchors, "scale", 4.0),
        lambda c: c.anchors.__setitem__("scale", 4.0),
        lambda c: c.anchors.update(scale=4.0),
        lambda c: c.update({"anchors": {"scale": 4.0}}),
        lambda c: c.update_from_flattened_dict({"anchors.scale": 4.0}),
    ],
)
def test_setting_the_default_counts(set_it):
    config = default_config()
    set_it(config)
    assert fields_set(config) == {"anchors.scale"}
    assert config == default_config()


@pytest.mark.parametrize(
    "copied",
    [
        lambda c: c.copy_and_resolve_references(),
        copy.deepcopy,
        lambda c: pickle.loads(pickle.dumps(c)),
    ],
)
def test_copies_remember_and_do_not_share(copied):
    config = default_config()
    config.seed = 0
    twin = copied(config)
    twin.train.steps = 7
    assert fields_set(config) == {"seed"}
    assert fields_set(twin) == {"seed", "train.steps"}
    assert twin.is_locked


@pytest.mark.parametrize("kind", [dict, ml_collections.ConfigDict])
def test_a_group_that_is_replaced_is_set_as_a_whole(kind):
    config = default_config()
    config.matching = kind(config.matching.to_dict())
    config.matching.low_quality = False
    assert fields_set(config) == {f"matching.{name}" for name in config.matching}


def test_of_other_configs_what_differs_counts():
    config = ml_collections.ConfigDict(default_config().to_dict())
    config.seed = 3
    assert fields_set(config) == {"seed"}


def test_experiments_and_flags_set_fields(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(EXPERIMENT)
    argv = [f"--config={file}", "--config.train.steps=90000", "--workdir=x"]
    parsed = parse(argv, "usage", [Flag("workdir", "folder")])
    assert fields_set(parsed.config) == {"anchors.scale", "data.fit", "train.steps"}


def fitted_run():
    """The config of a run with fitted values, and its config.json."""
    asked = default_config()
    asked.data.fit = True
    values = {"anchors.scale": 2.0, "data.buckets": ((64, 96),), "train.steps": 300}
    effective = changed_config(asked, values)
    content = to_json(effective, resolve(effective).to_json() | {FITTED: values})
    return asked, effective, json.loads(json.dumps(content))


def test_config_json_holds_what_was_asked_and_what_was_fitted():
    asked, effective, content = fitted_run()
    assert content["anchors"]["scale"] == asked.anchors.scale == 4.0
    assert content["train"]["steps"] == 90_000
    assert content["resolved"]["fitted"]["anchors.scale"] == 2.0
    assert leaves(from_json(content)) == leaves(effective)
    assert differences(comparable(content), comparable(effective)) == {}
    assert "anchors.scale" in differences(comparable(content), comparable(asked))


def test_the_config_of_a_run_has_every_field_set():
    *_, content = fitted_run()
    assert fields_set(from_json(content)) == leaves(default_config()).keys()
