"""The writer goes on where it was stopped, and a data set is there whole or not at all."""

import collections
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trees_of_formats import REPOSITORY, prepare

from retina_jax.data.data_set import find_data_set, open_split
from retina_jax.errors import UserError
from retina_jax.prepare import shapes
from retina_jax.prepare.writer import ROWS_A_SHARD, RecordsError, write_data_set


class Drawn:
    """Shapes, with rows that fail, and a count of how often each was read."""

    def __init__(self, rows, bad=(), version=0):
        self.rows, self.bad, self.version = rows, set(bad), version
        self.reads = collections.Counter()

    def __len__(self):
        return self.rows

    def read(self, row):
        self.reads[row] += 1
        if row in self.bad:
            raise UserError(f"row {row} is bad")
        return shapes.draw_record("train", row % 8)

    def fingerprint(self, row):
        return f"{row} {self.version if row < 3 else 0}"


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("retina_jax.prepare.writer.ROWS_A_SHARD", 4)


def write(root, rows):
    arguments = (shapes.CLASS_NAMES, shapes.CATEGORY_IDS, "drawn")
    return write_data_set(root, "drawn", {"train": rows}, *arguments)


def test_a_write_that_failed_goes_on_with_what_is_whole(tmp_path, small_shards):
    with pytest.raises(RecordsError, match=r"row 5 is bad \(and 1 more, listed above\)") as caught:
        write(tmp_path, Drawn(14, bad=(5, 9)))
    assert caught.value.lines == ("row 5 is bad", "row 9 is bad")
    assert not (tmp_path / "drawn" / "1.0.0").exists()
    mended = Drawn(14)
    directory, _ = write(tmp_path, mended)
    assert sorted(mended.reads) == list(range(4, 12))  # shards 1 and 2 alone
    split = open_split(directory, "train")
    assert len(split) == 14
    for row in range(14):
        assert split[row].image == shapes.draw_record("train", row % 8).image
    left = [p.name for p in directory.iterdir() if p.suffix in (".note", ".partial")]
    assert left == []
    assert [p.name for p in directory.parent.iterdir()] == ["1.0.0"]


def test_what_has_changed_is_written_anew(tmp_path, small_shards):
    with pytest.raises(RecordsError):
        write(tmp_path, Drawn(12, bad=(11,)))
    changed = Drawn(12, version=1)
    write(tmp_path, changed)
    assert sorted(changed.reads) == [0, 1, 2, 3, 8, 9, 10, 11]


def test_a_shard_that_was_spoilt_is_written_anew(tmp_path, small_shards):
    with pytest.raises(RecordsError):
        write(tmp_path, Drawn(12, bad=(11,)))
    shard = sorted((tmp_path / "drawn").glob("incomplete*/*-00001-of-00003"))[0]
    shard.write_bytes(shard.read_bytes()[:100])
    again = Drawn(12)
    write(tmp_path, again)
    assert sorted(again.reads) == list(range(4, 12))


def test_one_process_writes_at_a_time(tmp_path):
    import fcntl

    (tmp_path / "drawn").mkdir()
    with (tmp_path / "drawn" / ".incomplete.1.0.0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing "):
            write(tmp_path, Drawn(4))
    write(tmp_path, Drawn(4))


def test_the_second_of_two_at_once_changes_nothing(tmp_path):
    directory, _ = write(tmp_path, Drawn(4))
    report = (directory / "prepare_report.json").read_bytes()
    with pytest.raises(UserError, match="already exists; another process wrote it"):
        write(tmp_path, Drawn(5))
    assert (directory / "prepare_report.json").read_bytes() == report
    assert [p.name for p in directory.parent.glob("*1.0.0")] == ["1.0.0"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name", "x" * 300], "must have at most 100 lower-case letters, digits and _"),
        (["--name", "My Data"], "try --name=my_data"),
        (["--out", "~nobody_of_that_name/x"], "~nobody_of_that_name/x: "),
    ],
)
def test_flags_that_cannot_be_are_one_line(tmp_path, flags, message):
    done = prepare("yolo", "--tree", tmp_path, "--out", tmp_path, *flags, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "drawn").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path, Drawn(4))


KILLED = """
import sys, time
sys.path[:0] = [{repository!r}, {repository!r} + '/tests/prepare']
from tests.prepare.test_writer import Drawn, write
import retina_jax.prepare.writer as writer
writer.ROWS_A_SHARD = 4
class Slow(Drawn):
    def read(self, row):
        time.sleep(0.02 if row < 8 else 3600)
        return super().read(row)
write({root!r}, Slow(16))
"""


def test_a_killed_write_is_no_data_set_and_goes_on(tmp_path, small_shards):

    code = KILLED.format(repository=str(REPOSITORY), root=str(tmp_path)).replace(
        f"write({str(tmp_path)!r}", f"import pathlib; write(pathlib.Path({str(tmp_path)!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    notes = []
    for _ in range(3000):
        notes = list(Path(tmp_path).glob("drawn/incomplete*/[!.]*.note"))
        if len(notes) == 2 or child.poll() is not None:
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(notes) == 2
    with pytest.raises(UserError, match="no data set"):
        find_data_set(tmp_path, "drawn")
    rest = Drawn(16)
    directory, _ = write(tmp_path, rest)
    assert sorted(rest.reads) == list(range(8, 16))
    assert len(open_split(directory, "train")) == 16


def test_a_shard_holds_a_thousand_pictures():
    assert ROWS_A_SHARD == 1024  # 160 MB of COCO: what a kill can cost
