"""Processes that agree, played by threads over a store in memory."""

import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from jax._src.lib import _jax

from retina_jax import coordination
from retina_jax.coordination import Group
from retina_jax.errors import RunError


class Store:
    """What JAX's client does, for threads of one process."""

    def __init__(self):
        self.values = {}
        self.changed = threading.Condition()
        self.gone = False

    def _check(self):
        if self.gone:
            raise RuntimeError("UNAVAILABLE: Socket closed")

    def key_value_set(self, key, value, allow_overwrite=False):
        self._check()
        with self.changed:
            if key in self.values and not allow_overwrite:
                raise RuntimeError(f"ALREADY_EXISTS: {key}")
            self.values[key] = value
            self.changed.notify_all()

    def key_value_try_get(self, key):
        self._check()
        if key not in self.values:
            raise RuntimeError(f"NOT_FOUND: {key}")
        return self.values[key]

    def key_value_dir_get(self, key):
        self._check()
        return [(k, v) for k, v in dict(self.values).items() if k.startswith(key)]

    def key_value_delete(self, key):
        self._check()
        with self.changed:
            del self.values[key]

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, timeout_in_ms / 1000):
                raise RuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self.values[key]


@pytest.fixture
def groups(monkeypatch):
    """Makes groups of one run; none of them ends the program: it records why it would."""
    monkeypatch.setattr(coordination, "BEAT", 0.02)
    made, left = [], {}

    def leave(group, code, lines):
        group._ended.set()
        left.setdefault(group.index, (code, list(lines)))

    monkeypatch.setattr(Group, "leave", leave)

    def make(count):
        store = Store()
        with ThreadPoolExecutor(count) as threads:
            made.extend(threads.map(lambda i: Group(store, i, count, f"h{i}"), range(count)))
        return made, store, left

    yield make
    for group in made:
        group._ended.set()


def in_all(groups, function):
    with ThreadPoolExecutor(len(groups)) as threads:
        return list(threads.map(function, groups))


def wait_until(reached):
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_process_agrees_with_itself():
    group = Group(None, 0, 1, "here")
    assert group.exchange("x", "a") == ["a"]
    assert group.tell("x", "b") == "b"
    group.barrier("x")
    group.fail(1, ["nobody listens"])
    assert not group.must_stop((1, 0))


@pytest.mark.parametrize("count", [2, 5])
def test_all_get_the_values_of_all_in_their_order_each_time(groups, count):
    made, _, _ = groups(count)
    for turn in ("a", "b"):
        expected = [f"{turn}{i}" for i in range(count)]
        assert (
            in_all(made, lambda g, t=turn: g.exchange("x", f"{t}{g.index}")) == [expected] * count
        )
    assert in_all(made, lambda g: g.tell("y", f"of {g.index}")) == ["of 0"] * count
    assert made[0].hosts == [f"h{i}" for i in range(count)]


def talk(group, turns):
    """What a long run says: a line of the log, and now and then the metrics of an evaluation."""
    for turn in range(turns):
        every = group.exchange("boxes", f"{turn} of {group.index}")
        assert every == [f"{turn} of {i}" for i in range(group.count)]
        if turn % 3 == 0:
            assert group.tell("metrics", f"{turn} of {group.index}") == f"{turn} of 0"


def test_the_store_does_not_grow_with_the_number_of_exchanges(groups):
    made, store, _ = groups(3)
    in_all(made, lambda group: talk(group, 200))
    kept = [key for key in store.values if key.startswith(("exchange/", "tell/"))]
    assert len(kept) == 1


@pytest.fixture
def real_clients():
    """Two clients of JAX's own coordination service."""
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    service = _jax.get_distributed_runtime_service(f"[::]:{address.split(':')[1]}", 2)
    clients = [_jax.get_distributed_runtime_client(address, i, init_timeout=60) for i in (0, 1)]
    in_all(clients, lambda client: client.connect())
    yield clients
    in_all(clients, lambda client: client.shutdown())
    service.shutdown()


def test_the_store_of_jax_does_not_grow_either(real_clients):
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(lambda i: Group(real_clients[i], i, 2, f"h{i}"), range(2)))
    in_all(made, lambda group: talk(group, 200))
    for group in made:
        group._ended.set()
    kept = [real_clients[0].key_value_dir_get(folder) for folder in ("exchange/", "tell/")]
    assert [len(keys) for keys in kept] == [1, 0]


def test_a_process_that_does_not_answer_is_an_error_and_not_for_ever(groups):
    made, _, _ = groups(2)
    with pytest.raises(RunError, match="no answer from another host within 0 s"):
        made[0].exchange("alone", "x", 0.05)


@pytest.mark.parametrize("seed", range(8))
def test_all_stop_after_the_same_point_wherever_each_of_them_is(groups, seed):
    made, _, _ = groups(3)
    points = [(step, batch) for step in range(30) for batch in range(3)]
    rng = random.Random(seed)
    pace = [rng.uniform(0, 0.004) for _ in made]
    asks = rng.randrange(3), rng.randrange(10, 60)

    def run(group):
        done = []
        for number, point in enumerate(points):
            if (group.index, number) == asks:
                group.ask_to_stop(15)
            if group.must_stop(point):
                return done
            done.append(point)
            time.sleep(pace[group.index])
        return done

    one, *others = in_all(made, run)
    assert all(other == one for other in others)
    assert one == points[: len(one)]
    assert all(group.asked == 15 for group in made)


def test_where_one_has_nothing_to_save_all_end_at_once(groups):
    made, _, left = groups(2)
    made[1].unchanged = True
    made[0].ask_to_stop(15)
    wait_until(lambda: len(left) == 2)
    assert {code for code, _ in left.values()} == {143}
    assert "nothing has changed" in left[0][1][0]


@pytest.mark.parametrize("by", [0, 1])
def test_an_error_reaches_all_with_the_name_of_its_host(groups, by):
    made, _, left = groups(3)
    made[by].fail(2, ["error: no such folder"])
    wait_until(lambda: len(left) == 2)
    assert all(
        x == (2, [f"host h{by} (process {by}): error: no such folder"]) for x in left.values()
    )
    assert by not in left


def test_a_process_that_falls_silent_is_named_by_the_others(groups, monkeypatch):
    monkeypatch.setattr(coordination, "LOST_AFTER", 2.0)
    made, _, left = groups(3)
    made[1]._ended.set()  # its watch stops
    wait_until(lambda: {0, 2} <= left.keys())
    assert left[0][0] == left[2][0] == 1
    assert "host h1 (process 1) has not answered for" in left[0][1][0]
    assert "host h1 (process 1) has not answered for" in left[2][1][0]


def test_a_coordinator_that_is_gone_is_named(groups):
    _, store, left = groups(2)
    store.gone = True
    wait_until(lambda: 1 in left)
    assert "UNAVAILABLE: Socket closed" in left[1][1][0]
    assert "host h0 (process 0), the coordinator, has ended" in left[1][1][-1]
