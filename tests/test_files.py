"""The atomic writer: whole or not at all, and nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from retina_jax import files
from retina_jax.files import atomic_write, remove_leftovers, write_json, write_text


def hidden(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def test_a_file_is_written_with_its_folders_and_the_usual_mode(tmp_path):
    path = tmp_path / "a" / "b" / "value.json"
    write_json(path, {"x": [1, 2]})
    assert path.read_text() == '{\n  "x": [\n    1,\n    2\n  ]\n}\n'
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert not hidden(path.parent)


def test_an_exception_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "value.txt"
    write_text(path, "before")

    def fail():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "before"
    assert not hidden(tmp_path)


def test_the_temporary_path_keeps_the_suffix(tmp_path):
    with atomic_write(tmp_path / "arrays.npz") as temporary:
        np.savez(temporary, a=np.arange(3))  # would add the suffix to any other name
    assert np.load(tmp_path / "arrays.npz")["a"].tolist() == [0, 1, 2]
    assert not hidden(tmp_path)


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "value.txt"
    barrier = threading.Barrier(8)

    def write(text):
        barrier.wait()
        for _ in range(20):
            write_text(path, text * 1000)

    threads = [threading.Thread(target=write, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = path.read_text()
    assert len(text) == 1000
    assert len(set(text)) == 1
    assert not hidden(tmp_path)


KILLED = """
import pathlib, sys, time
from retina_jax.files import atomic_write
with atomic_write(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("begun", flush=True)
    time.sleep(3600)
"""


def test_a_killed_writer_leaves_nothing_that_the_next_one_does_not_remove(tmp_path):
    path = tmp_path / "value[1].txt"  # a name that is a pattern
    write_text(path, "before")
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "begun\n"
    remove_leftovers(tmp_path, path.name)
    assert len(hidden(tmp_path)) == 1, "a writer that still runs is left alone"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert path.read_text() == "before"
    write_text(path, "after")
    assert path.read_text() == "after"
    assert not hidden(tmp_path)


def test_another_hosts_recent_file_stays_and_its_old_one_goes(tmp_path, monkeypatch):
    mine = files._host()
    monkeypatch.setattr(files, "_host", lambda: "elsewhere")
    with atomic_write(tmp_path / "value.txt") as temporary:
        temporary.write_text("half")
        monkeypatch.setattr(files, "_host", lambda: mine)
        remove_leftovers(tmp_path)
        assert temporary.exists()
        long_ago = time.time() - 2 * files._ABANDONED_AFTER
        os.utime(temporary, (long_ago, long_ago))
        remove_leftovers(tmp_path)
        assert not temporary.exists()
        temporary.write_text("whole")


def test_the_rename_is_on_disk_before_it_is_told(tmp_path, monkeypatch):
    flushed = []
    own = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(handle) or own(handle))
    write_text(tmp_path / "value.txt", "x")
    assert len(flushed) == 2  # the file, then its folder
