"""The queue: batches of one group, oldest first, bounded, with each error where it belongs."""

import threading

import pytest

from retina_jax.serving.batcher import Batcher, Closed, Full


class Runs:
    """Doubles numbers; waits for ``go`` and records its batches."""

    def __init__(self):
        self.batches, self.go, self.entered = [], threading.Event(), threading.Semaphore(0)

    def __call__(self, group, items):
        self.entered.release()
        assert self.go.wait(30)
        self.batches.append((group, items))
        if "bad" in items:
            raise ValueError("bad")
        return [2 * item for item in items]


@pytest.fixture
def runs():
    made = Runs()
    yield made
    made.go.set()


def begun(runs, *arguments, **options):
    """A batcher whose first batch, of one item, runs until ``runs.go``."""
    batcher = Batcher(runs, *arguments, **options)
    (first,) = batcher.submit([("first", 0)])
    assert runs.entered.acquire(timeout=30)
    return batcher, first


def test_what_waits_shares_a_batch_of_its_group_oldest_first(runs):
    counts = []
    batcher, first = begun(runs, 3, 100, ran=counts.append)
    futures = [batcher.submit([(group, k)])[0] for k, group in enumerate("aabaaab")]
    assert batcher.waiting == 7
    runs.go.set()
    assert [f.result(30) for f in futures] == [2 * k for k in range(7)]
    assert first.result(30) == 0
    assert runs.batches == [
        ("first", [0]), ("a", [0, 1, 3]), ("b", [2, 6]), ("a", [4, 5]),
    ]  # fmt: skip
    assert batcher.close(30)
    assert counts == [1, 3, 2, 2]


def test_few_items_go_one_by_one_where_a_batch_is_slower(runs):
    batcher, _ = begun(runs, 4, 100, pays_from=lambda group: 3)
    futures = [batcher.submit([("a", k)])[0] for k in range(6)]
    runs.go.set()
    assert [f.result(30) for f in futures] == [0, 2, 4, 6, 8, 10]
    assert [items for _, items in runs.batches] == [[0], [0, 1, 2, 3], [4], [5]]
    batcher.close(30)


def test_a_full_queue_takes_all_or_nothing_until_something_is_cancelled(runs):
    batcher, _ = begun(runs, 2, 3)
    waiting = batcher.submit([("a", 1), ("a", 2)])
    with pytest.raises(Full) as caught:
        batcher.submit([("a", 3), ("a", 4)])
    assert caught.value.waiting == 2
    assert caught.value.seconds >= 1
    assert waiting[0].cancel()
    more = batcher.submit([("a", 3), ("a", 4)])
    runs.go.set()
    assert [f.result(30) for f in (waiting[1], *more)] == [4, 6, 8]
    assert all(1 not in items for _, items in runs.batches)
    batcher.close(30)


def test_an_error_is_of_its_batch_alone(runs):
    batcher, _ = begun(runs, 2, 10)
    futures = batcher.submit([("a", 1), ("a", "bad"), ("a", 3)])
    runs.go.set()
    for future in futures[:2]:
        with pytest.raises(ValueError, match="bad"):
            future.result(30)
    assert futures[2].result(30) == 6
    assert batcher.submit([("a", 5)])[0].result(30) == 10
    batcher.close(30)


def test_closing_runs_what_waits_and_takes_nothing_more(runs):
    batcher, _ = begun(runs, 2, 10)
    futures = batcher.submit([("a", 1), ("a", 2), ("a", 3)])
    assert not batcher.close(0.01)  # in time
    assert futures[0].cancelled()
    with pytest.raises(Closed):
        batcher.submit([("a", 4)])

    free = Runs()
    free.go.set()
    other = Batcher(free, 2, 10)
    futures = other.submit([("a", 1), ("a", 2), ("a", 3)])
    assert other.close(30)
    assert [f.result(0) for f in futures] == [2, 4, 6]
