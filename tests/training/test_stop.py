"""The wish to stop: heard once, and a second one ends the program as before."""

import os
import signal
import threading

import pytest

from retina_jax.training.stop import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish_and_the_second_acts_as_usual(number):
    class Usual(Exception):
        pass

    def usual(*_):
        raise Usual

    before = signal.signal(number, usual)
    try:
        with StopRequest() as stop:
            assert not stop
            os.kill(os.getpid(), number)
            assert stop
            assert stop.signal is number
            with pytest.raises(Usual):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, before)


def test_handlers_come_back_though_nothing_came():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert not stop
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_it_stays_false():
    heard = []

    def work():
        with StopRequest() as stop:
            heard.append(bool(stop))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [False]
    assert signal.getsignal(signal.SIGTERM) == before
