"""What a command works with: fitted once, read by a resume, never against a flag."""

import json

import numpy as np
import pytest

from retina_jax.config import default_config, fields_set, leaves
from retina_jax.config.values import FITTED, changed_config, comparable, differences
from retina_jax.data.data_set import open_split
from retina_jax.doctor import fit as doctor_fit
from retina_jax.prepare import shapes
from retina_jax.runs import fitting
from retina_jax.runs.fitting import fitted, fitted_to_data, not_fitted
from retina_jax.training import workdir


@pytest.fixture(scope="module")
def directory(made_once):
    return made_once("fitting", lambda out: shapes.build(out, {"train": 12, "validation": 4}))


@pytest.fixture
def config(directory):
    config = default_config()
    config.data.fit = True
    config.data.dir = str(directory)
    config.data.name = "shapes"
    config.train.batch_size = 4
    return config


@pytest.fixture
def splits(directory):
    folder = shapes.open_data_set(str(directory), "shapes")
    return [open_split(folder, name) for name in ("train", "validation")]


def begun(folder, config, splits, checkpoint=True):
    """The files of a run that was fitted, and what it was fitted to."""
    fit = fitted(config, *splits, folder)
    workdir.write_config(folder, fit.config, fit.facts())
    if checkpoint:
        (folder / "checkpoints" / "1").mkdir(parents=True)
    return fit


def test_without_data_fit_nothing_changes(config, splits):
    config.data.fit = False
    found = fitted(config, *splits)
    assert (found.config, found.fields, found.lines) == (config, {}, ())


def test_the_config_asked_for_is_left_alone(config, splits):
    before = leaves(config)
    found = fitted(config, *splits)
    assert leaves(config) == before
    assert found.config.data.max_boxes == found.fields["data.max_boxes"] < 100
    assert found.lines[0] == "fitted to 12 training images (data.fit):"


def test_fitting_what_is_fitted_changes_nothing(config, splits):
    once = fitted(config, *splits)
    assert fitted(once.config, *splits).fields == {}


def test_a_resume_reads_the_values_and_does_not_fit(config, splits, tmp_path, monkeypatch):
    before = begun(tmp_path, config, splits)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["resolved"][FITTED].keys() == before.fields.keys()
    assert stored["data"]["max_boxes"] == 100

    def other_data(train, evaluation, config, free):
        assert not free & before.fields.keys()
        return doctor_fit.Fit({})

    monkeypatch.setattr(fitting.fit, "fit", other_data)
    again = fitted(config, *splits, tmp_path)
    assert again.fields == before.fields
    assert workdir.changed_fields(tmp_path, again.config) == {}


def test_a_flag_wins_over_a_stored_value_and_is_told_as_a_change(config, splits, tmp_path):
    before = begun(tmp_path, config, splits)
    flagged = changed_config(config, {"anchors.scale": 3.5})
    again = fitted(flagged, *splits, tmp_path)
    assert again.config.anchors.scale == 3.5
    assert "anchors.scale" not in again.fields
    changed = workdir.changed_fields(tmp_path, again.config)
    assert changed == {"anchors.scale": (before.fields["anchors.scale"], 3.5)}


def test_without_a_checkpoint_it_is_fitted_again(config, splits, tmp_path):
    begun(tmp_path, config, splits, checkpoint=False)
    content = json.loads((tmp_path / "config.json").read_text())
    content["resolved"][FITTED]["data.max_boxes"] = 11
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert fitted(config, *splits, tmp_path).fields["data.max_boxes"] != 11


def test_commands_for_a_run_take_its_values(config, splits, tmp_path):
    before = begun(tmp_path, config, splits)
    assert leaves(workdir.read_config(tmp_path)) == leaves(before.config)
    assert leaves(workdir.as_in_run(config, tmp_path)) == leaves(before.config)
    flagged = changed_config(config, {"data.max_boxes": 55})
    assert workdir.as_in_run(flagged, tmp_path).data.max_boxes == 55
    of_run = workdir.read_config(tmp_path)
    assert leaves(workdir.as_in_run(of_run, tmp_path)) == leaves(of_run)


def test_the_splits_are_opened_for_commands_that_do_not(config, splits):
    from retina_jax.progress import Reporter

    assert fitted_to_data(config, Reporter()).fields == fitted(config, *splits).fields


def test_commands_without_data_say_that_they_do_not_fit(config):
    (line,) = not_fitted(config, "compile")
    assert "compile opens no data set" in line
    config.data.fit = False
    assert not_fitted(config, "compile") == []


def test_hosts_with_the_same_index_choose_the_same(config, splits):
    one, two = fitted(config, *splits), fitted(config, *splits)
    assert differences(comparable(one.config), comparable(two.config)) == {}
    assert fields_set(one.config) == fields_set(two.config)
    assert all(not isinstance(value, np.generic) for value in one.fields.values())
