"""Files in an object store: whole, seen at once by all, and with the errors of a disk."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bucket_server import ADDRESS

from retina_jax import files, object_store
from retina_jax.errors import FAULT, MISTAKE, UserError, explain
from retina_jax.files import open_path
from retina_jax.progress import Reporter
from retina_jax.training import lease
from retina_jax.training.lease import Lease
from retina_jax.training.workdir import open_workdir, read_config


@pytest.fixture
def folder(bucket):
    return open_path(f"{ADDRESS}/run", "--workdir")


def test_a_file_is_uploaded_whole(bucket, folder):
    files.write_json(folder / "eval" / "4" / "metrics.json", {"AP": 0.5})
    assert bucket.names() == ["run/eval/4/metrics.json"]
    (path,) = folder.glob("eval/*/metrics.json")
    assert str(path) == f"{ADDRESS}/run/eval/4/metrics.json"
    assert json.loads(path.read_text()) == {"AP": 0.5}
    assert (path.parent.is_dir(), path.exists(), (folder / "other").exists()) == (True, True, False)
    with pytest.raises(RuntimeError), files.atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"AP": 0.5}
    assert not temporary.parent.exists()


def test_what_other_hosts_write_is_seen(bucket, folder):
    """gcsfs would remember what it has listed."""
    assert not (folder / "a").exists()
    list(folder.glob("*"))
    bucket.put("run/a", b"x")
    assert (folder / "a").exists()
    assert (folder / "a").read_text() == "x"


def test_a_new_file_is_created_once(bucket, folder, monkeypatch):
    assert files.create(folder / "a", "one")
    assert not files.create(folder / "a", "two")
    system = object_store._system()
    monkeypatch.setattr(system, "exists", lambda path: False)  # both hosts looked before one wrote
    assert not files.create(folder / "a", "three")
    assert (folder / "a").read_text() == "one"


def test_times_are_those_of_the_store(bucket, folder):
    assert files.modified(folder / "a") is None
    before = files.clock(folder)
    files.write_text(folder / "a", "x")
    assert before <= files.modified(folder / "a") <= files.clock(folder)
    assert bucket.names() == ["run/a"]


def test_a_folder_is_moved(bucket, folder):
    for name in ("4/a", "4/d/b", "5/a"):
        files.write_text(folder / "checkpoints" / name, name)
    files.move_folder(folder / "checkpoints" / "4", folder / "damaged_checkpoints" / "4")
    assert bucket.names() == [
        "run/checkpoints/5/a", "run/damaged_checkpoints/4/a", "run/damaged_checkpoints/4/d/b"
    ]  # fmt: skip
    assert (folder / "damaged_checkpoints" / "4" / "d" / "b").read_text() == "4/d/b"


def test_files_that_grow_outlive_a_time_without_network(bucket, folder):
    mirror = files.mirror(folder)
    log = mirror.local / "metrics.jsonl"
    log.write_text("1\n")
    mirror.upload()
    _wait_until(lambda: bucket.names() == ["run/metrics.jsonl"])
    bucket.is_gone = True
    log.write_text("1\n2\n")
    mirror.upload()
    time.sleep(0.2)
    bucket.is_gone = False
    (mirror.local / "tensorboard").mkdir()
    (mirror.local / "tensorboard" / "events").write_text("x")
    mirror.close()
    assert (folder / "metrics.jsonl").read_text() == "1\n2\n"
    assert (folder / "tensorboard" / "events").read_text() == "x"
    assert not mirror.local.exists()


def test_files_that_grow_and_cannot_be_uploaded_are_an_error(bucket, folder):
    mirror = files.mirror(folder)
    (mirror.local / "metrics.jsonl").write_text("1\n")
    bucket.is_gone = True
    with pytest.raises(ConnectionError, match=f"{ADDRESS}/run/metrics.jsonl: "):
        mirror.close()


def test_on_disk_nothing_is_copied(tmp_path):
    mirror = files.mirror(tmp_path)
    assert mirror.local == tmp_path
    with files.on_disk(tmp_path / "a") as path:
        assert path == tmp_path / "a"


def test_a_lease_of_a_bucket(bucket, folder, monkeypatch):
    path = folder / lease.FILE
    with Lease(folder, Reporter()):
        assert json.loads(path.read_text())["host"]
        with pytest.raises(UserError, match=f"--workdir={ADDRESS}/run is in use by process"):
            Lease(folder, Reporter()).__enter__()
    assert not path.exists()
    monkeypatch.setattr(lease, "STALE_AFTER", 0.7)
    files.write_json(path, {"host": "elsewhere", "pid": 1, "token": "x"})
    with Lease(folder, Reporter()):
        assert json.loads(path.read_text())["host"] != "elsewhere"
    assert not path.exists()


def test_a_lease_is_renewed_and_outlives_a_time_without_network(bucket, folder, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED_EVERY", 0.1)
    with Lease(folder, Reporter()):
        first = files.modified(folder / lease.FILE)
        bucket.is_gone = True
        time.sleep(0.3)
        bucket.is_gone = False
        _wait_until(lambda: files.modified(folder / lease.FILE) > first)


def test_a_missing_bucket_and_a_forbidden_one_are_mistakes(bucket, folder, tiny_config):
    elsewhere = "gs://missing/run"
    with pytest.raises(UserError, match=f"--workdir={elsewhere}: .*; use a writable folder"):
        open_workdir(elsewhere, tiny_config)
    with pytest.raises(UserError, match=f"{elsewhere} has no config.json; set --workdir"):
        read_config(open_path(elsewhere, "--workdir"))
    bucket.is_forbidden = True
    with pytest.raises(UserError, match=f"--workdir={folder}: .*Forbidden.*; use a writable f"):
        open_workdir(folder, tiny_config)
    with pytest.raises(OSError, match="Forbidden") as caught:
        (folder / "config.json").read_text()
    code, (line,) = explain(caught.value)
    assert code == MISTAKE
    assert line.startswith("error: the object store refuses access (OSError: Forbidden: ")
    assert "gcloud auth application-default login" in line


def test_without_network_a_restart_may_help(bucket, folder, tiny_config):
    bucket.is_gone = True
    with pytest.raises(ConnectionError) as caught:
        open_workdir(folder, tiny_config)
    code, (line,) = explain(caught.value)
    assert code == FAULT
    assert line.startswith("stopped: the object store failed (ConnectionError: ")
    assert line.endswith("; run the same command again")


@pytest.mark.parametrize(
    "error",
    [ValueError('UNAVAILABLE: Error writing "gs://b/r/checkpoints/4/default/manifest.ocdbt"'),
     OSError("https://storage.googleapis.com/storage/v1/b/bucket/o/run: 503")],
)  # fmt: skip
def test_errors_of_tensorstore_and_gcsfs_are_those_of_the_store(error):
    assert explain(error)[0] == FAULT


def test_errors_of_a_disk_are_not_those_of_a_store():
    assert object_store.reason(OSError(5, "Input/output error", "/runs/r")) is None
    assert explain(ValueError("x")) is None


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs:///run", "http://host/run"])
def test_other_addresses_are_refused(address, tiny_config):
    with pytest.raises(
        UserError, match=f"--workdir={address} is an address that this program cannot open"
    ):
        open_workdir(address, tiny_config)


def test_without_gcsfs_the_extra_is_named(monkeypatch, tiny_config):
    object_store._system.cache_clear()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://bucket/run needs gcsfs .*'retina_jax\[gcs\]'"):
        open_workdir("gs://bucket/run", tiny_config)


def test_a_path_on_disk_opens_no_library():
    code = (
        "import sys\n"
        "from retina_jax.files import open_path\n"
        "print(open_path('~/run', '--workdir'))\n"
        "assert not {'etils', 'fsspec', 'gcsfs'} & {*sys.modules}, sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{Path('~/run').expanduser()}\n", done.stderr


def _wait_until(reached):
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)
