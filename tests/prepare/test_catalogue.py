"""What TFDS has becomes our data set; what it cannot give, or what is damaged, is one line."""

import json
import shutil
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from trees_of_formats import assert_same

from retina_jax.data.data_set import find_data_set, image_id_of, open_split
from retina_jax.errors import UserError
from retina_jax.prepare.catalogue import InOrder, open_catalogue, open_directory
from retina_jax.prepare.writer import write_data_set


def test_a_catalogue_name_becomes_our_data_set(shapes_dir, tmp_path, monkeypatch):
    directory = find_data_set(shapes_dir, "shapes")
    builder = tfds.builder_from_directory(str(directory))
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    rows, class_names, ids = open_catalogue("shapes", {}, None)
    assert ids == [0, 1, 2, 3, 4]
    written, counts = write_data_set(tmp_path, "copied", rows, class_names, ids, "a copy")
    original, copy = (open_split(d, "train") for d in (directory, written))
    assert_same(original, copy)
    assert counts["train"]["images"] == 24
    joined, _, _ = open_catalogue("shapes", {"train": "train+validation"}, None)
    assert len(joined["train"]) == 34
    with pytest.raises(UserError, match=r"has no split 'test'; it has train, validation"):
        open_catalogue("shapes", {"test": "test"}, None)


def test_what_the_catalogue_cannot_give_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nonsense is not in the TFDS catalogue"):
        open_catalogue("nonsense", {}, tmp_path)

    def needs_tensorflow(*_, **__):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds, "builder", needs_tensorflow)
    with pytest.raises(UserError, match=r"requires TensorFlow.*pip install -e '.\[catalogue\]'"):
        open_catalogue("coco/2017", {}, tmp_path)


def damaged(shapes_dir, tmp_path, name, damage):
    """A copy of shapes with one of its files changed."""
    directory = tmp_path / "copy" / "1.0.0"
    shutil.copytree(find_data_set(shapes_dir, "shapes"), directory)
    (path,) = directory.glob(name)
    damage(path)
    return directory


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_cut_metadata_is_one_line(shapes_dir, tmp_path, name):
    directory = damaged(shapes_dir, tmp_path, name, cut)
    with pytest.raises(UserError, match=r"is damaged: its dataset_info.json or features.json"):
        open_split(directory, "train")
    with pytest.raises(UserError, match="contains no TFDS data set"):
        open_directory(directory, {})


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_cut_and_missing_shards_are_one_line(shapes_dir, tmp_path, damage):
    directory = damaged(shapes_dir, tmp_path, "*train.array_record*", damage)
    with pytest.raises(UserError, match=r"cannot be read|is damaged"):
        [open_split(directory, "train")[row] for row in range(24)]
    with pytest.raises(UserError, match=r"cannot be read|is damaged"):
        [open_directory(directory, {})[0]["train"].read(row) for row in range(24)]


def test_ids_that_are_text_become_rows_and_classes_are_needed(shapes_dir, tmp_path):
    assert image_id_of({"image/id": b"000005"}, 3) == 5
    assert image_id_of({"image/id": b"2007_x"}, 3) == 3
    assert image_id_of({}, 3) == 3

    def without_label(path):
        content = json.loads(path.read_text())
        objects = content["featuresDict"]["features"]["objects"]["sequence"]["feature"]
        del objects["featuresDict"]["features"]["label"]
        path.write_text(json.dumps(content))

    directory = damaged(shapes_dir, tmp_path, "features.json", without_label)
    for open_it in (lambda: open_split(directory, "train"), lambda: open_directory(directory, {})):
        with pytest.raises(UserError, match="objects/label with class names"):
            open_it()


def test_what_is_read_from_the_start_alone_serves_threads_and_skips():
    records = InOrder(iter(range(5000)), 5000)
    assert [records[row] for row in (1, 0, 3, 2)] == [1, 0, 3, 2]
    assert records[4000] == 4000  # shards that are whole already are passed over
    assert records[3999] == 3999
    assert len(records._read) <= InOrder._KEPT


def test_a_tfrecord_data_set_says_how_to_convert_it(shapes_dir, tmp_path):
    directory = tmp_path / "mine" / "1.0.0"
    directory.mkdir(parents=True)
    for path in find_data_set(shapes_dir, "shapes").glob("*.*"):
        if path.suffix in (".json", ".txt"):
            text = path.read_text().replace("array_record", "tfrecord")
            (directory / path.name).write_text(text)
    with pytest.raises(
        UserError,
        match=r"is tfrecord, which has no random access; convert it with: "
        rf".*prepare tfds --directory {directory} --out DIR",
    ):
        open_split(directory, "train")
    with pytest.raises(
        UserError, match=r"reading .* requires TensorFlow; install it.*'.\[catalogue\]'"
    ):
        open_directory(directory, {})
    with pytest.raises(UserError, match="contains no TFDS data set"):
        open_directory(tmp_path, {})
