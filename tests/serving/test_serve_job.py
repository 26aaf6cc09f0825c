"""The command: flags, what is missing, the port, exit codes of signals."""

import importlib.util
import os
import re
import signal
import threading

import pytest
from served import NumberedEngine, ask, detect, numbered, wait_until

from retina_jax.errors import MISTAKE
from retina_jax.serving.server import bind


@pytest.fixture
def engine(monkeypatch):
    """Stands in for the network of a run."""
    import types

    from retina_jax.prediction import network
    from retina_jax.serving import engine

    made = NumberedEngine()
    config = types.SimpleNamespace(train=types.SimpleNamespace(compilation_cache=False))
    loaded = types.SimpleNamespace(config=config, source="checkpoint of step 7")

    def from_workdir(workdir, checkpoint, note):
        made.checkpoint = checkpoint
        return loaded

    monkeypatch.setattr(network, "from_workdir", from_workdir)
    monkeypatch.setattr(engine, "NetworkEngine", lambda *arguments: made)
    return made


def free_port():
    with bind("127.0.0.1", 0) as bound:
        return bound.getsockname()[1]


@pytest.mark.parametrize(
    ("number", "code", "host", "notice"),
    [(signal.SIGTERM, 143, "127.0.0.1", False), (signal.SIGINT, 130, "0.0.0.0", True)],
)
def test_a_signal_stops_it_with_its_code(program, engine, number, code, host, notice):
    """After the answers to open requests; a host that others can reach is mentioned."""
    port = free_port()
    outcomes = []

    def use():
        wait_until(lambda: is_ready(port))
        engine.go.clear()
        client = threading.Thread(target=lambda: outcomes.append(detect(port, numbered(1))))
        client.start()
        wait_until(lambda: engine.entered)
        os.kill(os.getpid(), number)
        wait_until(lambda: ask(port)[2]["status"] == "stopping")
        engine.go.set()
        client.join()

    user = threading.Thread(target=use)
    user.start()
    done = program("serve", "--workdir=run", f"--port={port}", f"--host={host}", "--step=7")
    user.join()
    assert done.returncode == code
    assert [status for status, *_ in outcomes] == [200]
    assert engine.checkpoint == 7
    assert re.fullmatch(rf"serving numbered at http://[^ ]+:{port}/\n", done.stdout)
    assert f"stopped by {number.name}" in done.stderr
    assert ("anyone who can reach this machine" in done.stderr) == notice
    assert "POST" not in done.stderr  # no access log


def is_ready(port):
    try:
        return ask(port)[0] == 200
    except OSError:
        return False


def test_requests_are_logged_on_demand(program, engine):
    port = free_port()

    def use():
        wait_until(lambda: is_ready(port))
        detect(port, numbered(1))
        os.kill(os.getpid(), signal.SIGTERM)

    user = threading.Thread(target=use)
    user.start()
    done = program("serve", "--workdir=run", f"--port={port}", "--log-requests")
    user.join()
    assert re.search(r"^127.0.0.1 POST '/detect' 200 \d+ ms$", done.stderr, re.MULTILINE)
    assert engine.checkpoint == "best"


def test_a_port_in_use_is_a_mistake(program, engine):
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        done = program("serve", "--workdir=run", f"--port={port}")
    assert done.returncode == MISTAKE
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --port={port} is in use on 127.0.0.1; stop that program")


def test_without_the_extra_one_line_says_what_to_install(program, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec",
        lambda name, *rest: None if name in ("fastapi", "uvicorn") else find(name, *rest),
    )  # fmt: skip
    done = program("serve", "--workdir=run")
    assert done.returncode == MISTAKE
    assert done.stderr == (
        "error: serve needs fastapi, uvicorn; install with: pip install 'retina_jax[serve]'\n"
    )


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "--workdir"),
        (["--workdir=w", "--port=70000"], "--port=70000 must lie between 0 and 65535"),
        (["--workdir=w", "--batch-size=0"], "--batch-size=0 must lie between 1 and 1024"),
        (["--workdir=w", "--score-threshold=2"], "--score-threshold=2.0 must lie between 0 and 1"),
        (["--workdir=w", "--max-queue=2"], "--max-queue=2 is less than --max-images=16"),
        (["--workdir=/nowhere", "--port=0"], "--workdir=/nowhere is not a folder"),
    ],
)
def test_a_mistake_is_one_line(program, flags, text):
    done = program("serve", *flags)
    assert done.returncode == MISTAKE
    (line,) = done.stderr.splitlines()
    assert text in line
