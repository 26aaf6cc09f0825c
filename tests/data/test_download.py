"""A data set in an object store is copied to disk, once, and read there."""

import shutil

import pytest
from bucket_server import ADDRESS

from retina_jax.data import download
from retina_jax.data.data_set import data_dir, find_data_set, open_split
from retina_jax.errors import UserError
from retina_jax.files import open_path


@pytest.fixture
def stored(bucket, shapes_dir, tmp_path, monkeypatch):
    """``shapes`` in a bucket; what is copied goes to ``tmp_path``."""
    monkeypatch.setenv("RETINA_JAX_CACHE", str(tmp_path))
    upload(shapes_dir)
    return find_data_set(data_dir(f"{ADDRESS}/data"), "shapes")


def upload(shapes_dir):
    from retina_jax.object_store import upload

    open_path(ADDRESS, "--config.data.dir")
    for path in shapes_dir.rglob("*"):
        if path.is_file():
            upload(path, f"{ADDRESS}/data/{path.relative_to(shapes_dir)}")


def test_only_the_split_that_is_read_is_copied(stored, shapes_dir, monkeypatch):
    assert str(stored) == f"{ADDRESS}/data/shapes/1.0.0"
    split = open_split(stored, "validation")
    original = open_split(find_data_set(shapes_dir, "shapes"), "validation")
    assert split.fingerprints() == original.fingerprints()
    assert split[3].image == original[3].image
    names = {path.name for path in split.directory.iterdir()}
    assert "index_validation.npz" in names
    assert not [name for name in names if "train" in name]
    assert split.directory.parent.name == "shapes"  # as the names of evaluations say
    monkeypatch.setattr(download, "_copy", None)  # nothing is copied again
    assert open_split(stored, "validation").directory == split.directory


def test_a_data_set_that_has_changed_is_another_copy(stored, bucket):
    first = open_split(stored, "validation").directory
    bucket.remove("data/shapes/1.0.0/prepare_report.json")
    second = open_split(stored, "validation").directory
    assert first != second
    assert first.is_dir()


def test_a_copy_that_was_interrupted_goes_on(stored):
    folder = open_split(stored, "validation").directory
    (shard,) = folder.glob("*.array_record*")
    shard.write_bytes(shard.read_bytes()[:100])
    (folder / "features.json").unlink()
    assert len(open_split(stored, "validation")) == 10
    assert shard.stat().st_size > 100


def test_a_copy_that_differs_from_its_object_is_not_kept(stored, monkeypatch):
    from retina_jax import object_store

    def damaged(source, target):
        with open(target, "wb") as file:
            file.write(bytes(object_store._system().info(source)["size"]))

    monkeypatch.setattr(object_store._system(), "get_file", damaged)
    with pytest.raises(ConnectionError, match="differs from the object"):
        open_split(stored, "validation")


def test_without_room_nothing_is_copied(stored, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 30))
    with pytest.raises(UserError, match=r"set \$RETINA_JAX_CACHE to a folder on a larger disk"):
        open_split(stored, "validation")


def test_a_missing_folder_is_named(bucket):
    with pytest.raises(UserError, match=f"config.data.dir='{ADDRESS}/nowhere' is not a folder"):
        find_data_set(data_dir(f"{ADDRESS}/nowhere"), "shapes")
