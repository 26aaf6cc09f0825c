"""The folder of a run: its config read back, what changed, and what cannot be read."""

import json

import pytest

from retina_jax.config import default_config, leaves
from retina_jax.errors import UserError
from retina_jax.training.workdir import open_workdir, read_config, write_config


def test_a_config_is_read_back_with_an_absolute_folder_of_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = default_config()
    config.data.dir = "data"
    config.train.steps = 7
    write_config(tmp_path / "run", config, {"class_names": ["a", "b"], "category_ids": [1, 3]})
    monkeypatch.chdir("/")
    back = read_config(tmp_path / "run")
    assert back.data.dir == str(tmp_path / "data")
    config.data.dir = back.data.dir
    assert leaves(back) == leaves(config)
    content = json.loads((tmp_path / "run/config.json").read_text())
    assert content["resolved"]["class_names"] == ["a", "b"]
    assert content["resolved"]["category_ids"] == [1, 3]
    assert content["resolved"]["learning_rate"] == 0.01


@pytest.mark.parametrize("content", ["{", "", "[1]", "null"], ids=["cut", "empty", "list", "null"])
def test_a_config_that_cannot_be_read_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    for read in (read_config, lambda folder: open_workdir(folder, default_config())):
        with pytest.raises(UserError, match=r"config\.json cannot be read \(.*\); set") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_folder_without_a_config_is_no_workdir(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json; set --workdir to the folder of"):
        read_config(tmp_path)


def test_a_new_workdir_is_made_and_nothing_has_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, changed = open_workdir("a/b", default_config())
    assert folder == tmp_path / "a/b"
    assert list(folder.iterdir()) == []
    assert changed == []


def test_changed_fields_are_told_with_both_values(tmp_path):
    config = default_config()
    write_config(tmp_path, config)
    assert open_workdir(tmp_path, config) == (tmp_path, [])
    config.train.steps = 5
    config.loss.gamma = 1.0
    written = (tmp_path / "config.json").read_bytes()
    assert open_workdir(tmp_path, config)[1] == [
        "config.loss.gamma: 2.0 before, 1.0 now",
        "config.train.steps: 90000 before, 5 now",
    ]
    assert (tmp_path / "config.json").read_bytes() == written, "to open it writes nothing"


def test_a_run_of_the_previous_version_has_not_changed(tmp_path):
    before = json.loads(json.dumps(default_config().to_dict()))
    before["data"]["buckets"] = [[800, 1344], [1344, 800]]
    (tmp_path / "config.json").write_text(json.dumps(before))
    assert open_workdir(tmp_path, default_config())[1] == []


@pytest.mark.parametrize("name", ["file/run", "nul\0"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--workdir=.*; use a writable folder$"):
        open_workdir(tmp_path / name, default_config())


def test_a_folder_in_which_no_file_can_be_made_is_named():
    with pytest.raises(UserError, match=r"^--workdir=/proc: .*; use a writable folder"):
        open_workdir("/proc", default_config())  # not even for root
