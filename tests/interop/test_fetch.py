"""Weights by name against a local server: every fault of a network, a disk and a file."""

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import weight_server
from lines import Lines

from retina_jax.errors import RunError, UserError, explain
from retina_jax.interop import catalogue, fetch
from retina_jax.interop.catalogue import Digest, Published

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = "net.pth"
NAME = "torchvision:net"


def published(digest, short="net", file=FILE):
    return Published("torchvision", short, "a net", file, 0.3, "BSD-3-Clause", "RGB", digest)


NET = published(Digest("sha256", SHA256[:8]))


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Serves ``FILE`` in place of torchvision; the cache is empty."""
    monkeypatch.setenv("RETINA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    monkeypatch.setattr(fetch, "STALLED_AFTER", 5.0)
    with weight_server.serve() as server:
        monkeypatch.setitem(catalogue.BASES, "torchvision", server.url)
        server.files[FILE] = CONTENT
        yield server


@pytest.fixture
def path(tmp_path):
    """Where the file of ``NET`` is kept."""
    return tmp_path / "cache/weights/torchvision" / FILE


@pytest.fixture
def said():
    class Heard(Lines):
        def note(self, line, label="note"):
            self.lines.append(f"{label}: {line}")

    return Heard()


def fails(kind, of=NET, trust=False):
    """The one line of an error of ``kind`` (2: `UserError`, 1: `RunError`)."""
    with pytest.raises({1: RunError, 2: UserError}[kind]) as raised:
        fetch.fetch(of, trust=trust)
    code, lines = explain(raised.value)
    assert code == kind
    assert len(lines) == 1
    assert "\n" not in lines[0]
    return lines[0]


def test_a_file_is_fetched_once_and_verified(server, path, said):
    for _ in range(2):
        assert fetch.fetch(NET, said) == path
        assert path.read_bytes() == CONTENT
    assert server.requests == [(FILE, None)]
    assert said.lines == [f"fetching {server.url}{FILE} (0.3 MiB, BSD-3-Clause) to {path}"]
    assert sorted(each.name for each in path.parent.iterdir()) == [f".{FILE}.lock", FILE]


def test_the_folder_of_the_cache_is_the_users_by_default(monkeypatch):
    monkeypatch.delenv("RETINA_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert fetch.weights_folder() == Path("/xdg/retina_jax/weights")


def test_a_transfer_that_is_cut_off_continues_at_once(server, path):
    server.cuts = [100_000, 50_000]
    assert fetch.fetch(NET).read_bytes() == CONTENT
    ranges = [span for _, span in server.requests]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_the_next_program_continues_a_transfer(server, path):
    server.cuts = [100_000, 0]
    line = fails(1)
    assert "the connection was cut off" in line
    assert f"{server.url}{FILE}" in line
    assert str(path) in line
    part = path.with_name(f"{FILE}.part")
    assert part.read_bytes() == CONTENT[:100_000]
    assert not path.exists()
    assert fetch.fetch(NET).read_bytes() == CONTENT
    assert server.requests[-1] == (FILE, "bytes=100000-")
    assert not list(path.parent.glob("*.part*"))


@pytest.mark.parametrize("knows_if_range", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_anew(server, path, knows_if_range):
    """A server without If-Range sends the rest of the other file; its ETag tells."""
    server.files[FILE] = bytes(len(CONTENT) + 10)
    server.cuts = [100_000, 0]
    fails(1)
    server.files[FILE], server.version = CONTENT, 2
    server.knows_if_range = knows_if_range
    assert fetch.fetch(NET).read_bytes() == CONTENT
    assert len(server.requests) == (3 if knows_if_range else 4)


@pytest.mark.parametrize("what", ["knows_ranges", "names_versions"])
def test_servers_that_cannot_continue_send_the_whole_again(server, path, what):
    setattr(server, what, False)
    server.cuts = [100_000, 0]
    fails(1)
    server.cuts = []
    assert fetch.fetch(NET).read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_is_fetched_anew(server, path):
    server.cuts = [100_000, 0]
    fails(1)
    path.with_name(f"{FILE}.part").write_bytes(bytes(len(CONTENT) + 5))
    assert fetch.fetch(NET).read_bytes() == CONTENT


def test_a_complete_part_needs_no_network(server, path, monkeypatch):
    """The program ended between the last byte and the renaming."""
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_digest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fetch.fetch(NET)
    assert fetch.fetch(NET).read_bytes() == CONTENT
    assert len(server.requests) == 1


@pytest.mark.parametrize("facts", ["", "[]", '{"url": "elsewhere", "validator": "1", "total": 9}'])
def test_a_part_of_unknown_origin_is_not_used(server, path, facts):
    path.parent.mkdir(parents=True)
    path.with_name(f"{FILE}.part").write_bytes(b"x" * 9)
    path.with_name(f"{FILE}.part.json").write_text(facts)
    assert fetch.fetch(NET).read_bytes() == CONTENT
    assert server.requests == [(FILE, None)]


def test_a_wrong_hash_discards_the_download(server, path):
    server.files[FILE] = b"<html>log in first</html>"
    actual = hashlib.sha256(server.files[FILE]).hexdigest()
    line = fails(2)
    assert f"{server.url}{FILE} has SHA-256 {actual}, but {NAME} has SHA-256 {SHA256[:8]}…" in line
    assert str(path) in line
    assert [each.name for each in path.parent.iterdir()] == [f".{FILE}.lock"]


@pytest.mark.parametrize(("status", "kind"), [(404, 2), (403, 2), (407, 2), (429, 1), (503, 1)])
def test_refusals_are_mistakes_and_overload_is_a_fault(server, path, status, kind):
    server.status = status
    line = fails(kind)
    assert f"{NAME} from {server.url}{FILE} (HTTP {status} " in line
    assert str(path) in line


def test_a_server_that_falls_silent_is_given_up(server, path, monkeypatch):
    monkeypatch.setattr(fetch, "STALLED_AFTER", 2.0)
    server.stalls, server.cuts = True, [1000, 1000, 0]
    line = fails(1)
    assert "no byte within 2 s" in line
    assert (
        path.with_name(f"{FILE}.part").stat().st_size == 2000
    )  # it was asked again while it spoke


def test_a_slow_server_is_waited_for(server, path):
    server.stalls, server.cuts = True, [1000]
    threading.Timer(0.3, server.released.set).start()
    assert fetch.fetch(NET).read_bytes() == CONTENT
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://no-such-host.invalid/"])
def test_without_network_the_line_says_where_to_put_the_file(server, path, monkeypatch, url):
    monkeypatch.setitem(catalogue.BASES, "torchvision", url)
    monkeypatch.setenv("no_proxy", "*")
    line = fails(1)
    assert f"cannot fetch {NAME} from {url}{FILE} (" in line
    assert f"place the file at {path}" in line


def test_proxies_of_the_environment_are_used(server, path, monkeypatch):
    monkeypatch.setitem(catalogue.BASES, "torchvision", "http://no-such-host.invalid/")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    server.files[f"http://no-such-host.invalid/{FILE}"] = CONTENT
    assert fetch.fetch(NET).read_bytes() == CONTENT


# files that are there


def test_a_file_placed_by_hand_is_used_without_writing(server, path, monkeypatch):
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: 1 / 0)
    assert fetch.fetch(NET) == path
    assert server.requests == []
    assert [each.name for each in path.parent.iterdir()] == [FILE]


def test_another_file_placed_by_hand_is_refused_and_kept(server, path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"another")
    line = fails(2)
    actual = hashlib.sha256(b"another").hexdigest()
    assert f"{path} has SHA-256 {actual}, but {NAME} has SHA-256 {SHA256[:8]}…" in line
    assert server.url in line
    assert path.read_bytes() == b"another"


@pytest.mark.parametrize("digest", [
    Digest("sha256", SHA256), Digest("md5", hashlib.md5(CONTENT).hexdigest()[:6]),
])  # fmt: skip
def test_every_kind_of_hash_is_verified(server, path, digest):
    assert fetch.fetch(published(digest)) == path
    path.write_bytes(CONTENT[:-1] + b"x")
    assert f"{NAME} has {digest};" in fails(2, published(digest))


def test_a_file_without_a_hash_needs_trust(server, path, said):
    line = fails(2, published(None))
    assert "add --trust" in line
    assert server.url in line
    assert str(path) in line
    assert server.requests == []
    assert fetch.fetch(published(None), said, trust=True) == path
    assert said.lines[-1] == f"note: SHA-256 of {path} was not verified: {SHA256}"
    fetch.fetch(published(None), said, trust=True)
    assert said.lines[-1].startswith("note:")
    assert len(said.lines) == 3


def test_trust_does_not_excuse_a_wrong_hash(server):
    server.files[FILE] = b"another"
    assert "the download was discarded" in fails(2, trust=True)


# the folder


def test_a_folder_that_cannot_be_written_is_one_line(server, tmp_path, path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    line = fails(2)
    assert f"cannot use {path} (" in line
    assert "set $RETINA_JAX_CACHE to a writable folder" in line
    assert f"{server.url}{FILE}" in line
    (tmp_path / "cache").unlink()

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert "(Read-only file system)" in fails(2)


def test_a_full_disk_is_a_fault_that_names_the_file(server, path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(fetch, "_transfer", full)
    with pytest.raises(OSError, match="No space left") as raised:
        fetch.fetch(NET)
    assert explain(raised.value)[0] == 1


def test_a_disk_without_locks_gets_the_whole_file_under_another_name(server, path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fetch.fcntl, "flock", no_locks)
    server.cuts = [100_000]
    assert fetch.fetch(NET).read_bytes() == CONTENT
    assert server.requests[-1] == (FILE, "bytes=100000-")
    assert sorted(each.name for each in path.parent.iterdir()) == [f".{FILE}.lock", FILE]


# several processes

PROGRAM = """
import sys
from retina_jax.interop import catalogue, fetch
from retina_jax.interop.catalogue import Digest, Published
from retina_jax.progress import Reporter
url, file, digits = sys.argv[1:]
catalogue.BASES["torchvision"] = url
net = Published("torchvision", "net", "a net", file, 0.3, "", "RGB", Digest("sha256", digits))
print(fetch.fetch(net, Reporter.on_stderr()))
assert "jax" not in sys.modules
"""


@pytest.fixture
def start(server):
    """Starts a program that fetches the file; it is killed at the end of the test."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, server.url, FILE, SHA256[:8]],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_of_two_processes_one_fetches_and_the_other_waits(server, start, path):
    server.stalls, server.cuts = True, [100_000]
    first = start()
    assert server.asked.wait(60)
    second = start()
    assert re.match("waiting for another process", second.stderr.readline())
    server.released.set()
    for process in (first, second):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.strip() == str(path)
    assert len(server.requests) == 1
    assert path.read_bytes() == CONTENT


@pytest.mark.faults
def test_the_one_that_waits_takes_over_from_one_that_is_killed(server, start, path):
    server.stalls, server.cuts = True, [100_000]
    first = start()
    assert server.asked.wait(60)
    second = start()
    assert re.match("waiting for another process", second.stderr.readline())
    first.send_signal(signal.SIGKILL)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 2
    assert not list(path.parent.glob("*.part*"))
    assert out.strip() == str(path)
