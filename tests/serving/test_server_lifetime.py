"""How a server starts and stops, and the addresses and limits that it refuses."""

import signal
import threading
import time

import pytest
from served import NumberedEngine, Sending, ask, detect, numbered, serving, wait_until

from retina_jax.errors import UserError
from retina_jax.serving.limits import Limits
from retina_jax.serving.server import bind, url_of


def test_a_server_is_not_ready_before_its_programs_are_compiled():
    engine = NumberedEngine()
    compiled = threading.Event()
    engine.warm_up = lambda done: compiled.wait(30)
    with serving(engine, wait=False) as site:
        status, _, content = ask(site.port)
        assert (status, content["status"]) == (503, "starting")
        status, headers, content = detect(site.port, numbered(1))
        assert (status, headers["retry-after"]) == (503, "5")
        assert content["error"] == "the server is starting; try again later"
        compiled.set()
        wait_until(lambda: ask(site.port)[0] == 200)
        assert detect(site.port, numbered(1))[0] == 200


def test_an_error_while_compiling_ends_the_server():
    engine = NumberedEngine()

    def warm_up(done):
        raise UserError("out of device memory")

    engine.warm_up = warm_up
    from retina_jax.serving.server import Server

    with pytest.raises(UserError, match="out of device memory"):
        Server(engine, Limits()).serve_on(bind("127.0.0.1", 0))


def test_a_stop_answers_what_waits_and_refuses_what_comes():
    engine = NumberedEngine()
    with serving(engine) as site:
        engine.go.clear()
        sending = Sending(site.port)
        sending.send(0)
        wait_until(lambda: engine.entered)
        for number in range(1, 6):
            sending.send(number)
        wait_until(lambda: len(site.service.open) == 6 and site.service.waiting == 5)
        site.server.stop(signal.SIGTERM)
        status, headers, content = detect(site.port, numbered(9))
        assert (status, headers["connection"]) == (503, "close")
        assert content["error"] == "the server is stopping; try again later"
        assert ask(site.port)[0] == 503
        engine.go.set()
        outcomes = sending.wait()
        site.thread.join(30)
    assert [outcomes[k][0] for k in range(6)] == [200] * 6
    assert site.ended == [signal.SIGTERM]


@pytest.mark.parametrize("twice", [False, True])
def test_a_stop_does_not_wait_for_ever(twice):
    """After its time, or at the second signal."""
    engine = NumberedEngine()
    with serving(engine, stop_seconds=30 if twice else 0.2) as site:
        engine.go.clear()
        sending = Sending(site.port)
        sending.send(0)
        wait_until(lambda: engine.entered)
        started = time.monotonic()
        site.server.stop(signal.SIGINT)
        if twice:
            site.server.stop(signal.SIGINT)
        outcome = sending.wait()[0]
        assert outcome[0] == 503
        assert outcome[2]["error"].startswith("the server is stopping")
        assert time.monotonic() - started < 5
        engine.go.set()
        site.thread.join(30)
    assert site.ended == [signal.SIGINT]


def test_an_address_that_cannot_be_used_is_one_line():
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port} is in use on 127.0.0.1"):
            bind("127.0.0.1", port)
        assert url_of(taken) == f"http://127.0.0.1:{port}/"
    with pytest.raises(UserError, match=r"--host=203.0.113.5 is not an address of this machine"):
        bind("203.0.113.5", 0)
    with pytest.raises(UserError, match=r"--host=no such host --port=80: "):
        bind("no such host", 80)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"images": 0}, "--max-images=0 must be 1 or more"),
        ({"seconds": 0.0}, "--max-seconds=0 must be above 0"),
        ({"body": float("nan")}, "--max-body=nan must be above 0"),
        ({"stop_seconds": -1.0}, "--stop-seconds=-1 must be 0 or more"),
        ({"queue": 8}, "--max-queue=8 is less than --max-images=16"),
    ],
)
def test_a_limit_out_of_range_is_one_line(limits, text):
    with pytest.raises(UserError) as caught:
        Limits(**limits)
    assert text in str(caught.value)
