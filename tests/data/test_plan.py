"""The plan: a partition of every epoch, for any bucket, batch and step."""

import collections
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.data.plan import (
    Draw,
    Placement,
    TrainPlan,
    evaluation_batches,
    padding_share,
    place,
    place_all,
)

COCO = ((800, 1344), (1344, 800))
bucket_lists = st.lists(st.integers(0, 2), min_size=1, max_size=30).map(np.array)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), Placement(0, 800, 1067)),  # short side 480 to 800: × 5/3
        ((640, 480), Placement(1, 1067, 800)),
        ((300, 1000), Placement(0, 400, 1333)),  # the long side rules: × 1.333
        ((1000, 300), Placement(1, 1333, 400)),
        ((500, 500), Placement(0, 800, 800)),
        ((1600, 1600), Placement(0, 800, 800)),
    ],
)
def test_place_of_coco_pictures(size, expected):
    assert place(*size, COCO, 800, 1333) == expected


sides = st.integers(1, 5000)
some_buckets = st.lists(st.tuples(st.integers(32, 1500), st.integers(32, 1500)), min_size=1,
                        max_size=4)  # fmt: skip


@given(
    st.lists(st.tuples(sides, sides), max_size=20),
    some_buckets | st.just([(100, 200), (200, 100), (200, 200), (100, 200)]),
    st.integers(32, 1000) | st.just(100),
    st.integers(32, 2000) | st.just(200),
    st.sampled_from(["nearest", "floor"]),
)
def test_all_rows_at_once_lie_where_each_lies_alone(sizes, buckets, short, long, rounding):
    placed = place_all(np.array(sizes, np.int32).reshape(-1, 2), buckets, short, long, rounding)
    assert list(placed) == [place(*size, buckets, short, long, rounding) for size in sizes]


def test_scales_that_differ_by_less_than_is_compared_go_to_the_smaller_bucket():
    # (2^17 - 1) / 2^17 and 2^17 / (2^17 + 1) differ by 6e-11; place() compares nine digits
    size, buckets = (2**17, 2**17 + 1), ((2**17 - 1, 2**18), (2**18, 2**17))
    (placed,) = place_all(np.array([size]), buckets, 2**18, 2**18)
    assert placed == place(*size, buckets, 2**18, 2**18)
    assert placed.bucket == 0


def test_no_picture_of_coco_is_placed_by_itself(monkeypatch):
    from retina_jax.benchmarks.padding import coco_sizes
    from retina_jax.data import plan

    monkeypatch.setattr(plan, "place", None)  # 118,000 calls take 1.4 s
    placed = place_all(coco_sizes(118_000), COCO, 800, 1333)
    assert len(placed) == 118_000


def test_torchvision_rounds_sides_down_to_the_last_bit():
    # 448 / 640 is 0.7, and 360 · 0.7 is 251.99999999999997
    assert place(360, 640, ((256, 448),), 256, 448, "floor") == Placement(0, 251, 448)
    assert place(360, 640, ((256, 448),), 256, 448) == Placement(0, 252, 448)


def test_rows_that_are_left_out_are_never_drawn():
    plan = TrainPlan(np.array([0, -1, 0, 0, -1]), 0, 2)
    drawn = collections.Counter(d.row for step in range(30) for d in plan.batch_at(step)[1])
    assert drawn == {0: 20, 2: 20, 3: 20}


def test_a_picture_that_fits_no_bucket_shrinks_until_it_does():
    assert place(640, 480, ((256, 320),), 256, 320) == Placement(0, 256, 192)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_pictures_fit_their_bucket_and_keep_their_aspect(height, width):
    placed = place(height, width, COCO, 800, 1333)
    rows, columns = COCO[placed.bucket]
    assert 1 <= placed.height <= rows
    assert 1 <= placed.width <= columns
    scale = min(800 / min(height, width), 1333 / max(height, width))
    assert abs(placed.height - height * scale) <= 1
    assert abs(placed.width - width * scale) <= 1


@given(bucket_lists, st.integers(1, 7), st.integers(0, 2**31 - 1))
def test_every_image_is_drawn_equally_often_and_none_is_lost(bucket_of, batch, seed):
    plan = TrainPlan(bucket_of, seed, batch)
    drawn = collections.Counter()
    epochs = 7
    steps = sum(epochs * int((bucket_of == b).sum()) // batch for b in range(3))
    for step in range(steps):
        bucket, draws = plan.batch_at(step)
        assert len(draws) == batch
        assert all(bucket_of[d.row] == bucket for d in draws)
        drawn.update((d.row, d.occurrence) for d in draws)
    assert all(n == 1 for n in drawn.values())
    # after 7 epochs a bucket holds back fewer images than one batch
    held_back = collections.Counter(bucket_of.tolist())
    for row, epoch in drawn:
        assert epoch < epochs
        held_back[int(bucket_of[row])] -= 1 / epochs
    assert all(left * epochs < batch for left in held_back.values())


@given(bucket_lists, st.integers(1, 7), st.lists(st.integers(0, 400), max_size=5))
def test_any_step_stands_alone(bucket_of, batch, steps):
    in_order = TrainPlan(bucket_of, 3, batch)
    expected = [in_order.batch_at(step) for step in range(401)]
    for step in steps:
        assert TrainPlan(bucket_of, 3, batch).batch_at(step) == expected[step]


class PlanWithoutRepeats:
    """The order of training before images could be repeated: seeded runs must resume in it."""

    def __init__(self, bucket_of, seed, batch):
        self.members = [np.flatnonzero(bucket_of == b) for b in range(int(bucket_of.max()) + 1)]
        self.seed, self.batch = seed, batch

    def steps(self, epochs):
        for epoch in range(epochs):
            first, last = ([e * len(m) // self.batch for m in self.members]
                           for e in (epoch, epoch + 1))  # fmt: skip
            steps = [(b, k) for b in range(len(first)) for k in range(first[b], last[b])]
            order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(steps))
            for bucket, number in (steps[i] for i in order):
                positions = range(number * self.batch, (number + 1) * self.batch)
                yield bucket, [self.draw(bucket, position) for position in positions]

    def draw(self, bucket, position):
        epoch, place_in_epoch = divmod(position, len(self.members[bucket]))
        rng = np.random.default_rng((self.seed, 1, bucket, epoch))
        return Draw(int(rng.permutation(self.members[bucket])[place_in_epoch]), epoch)


@given(
    st.lists(st.integers(-1, 2), max_size=12).map(lambda rest: np.array([0, *rest])),
    st.integers(1, 5),
    st.integers(0, 2**31 - 1),
)
def test_without_repeats_the_order_is_that_of_earlier_versions(bucket_of, batch, seed):
    expected = list(PlanWithoutRepeats(bucket_of, seed, batch).steps(4))
    for repeats in (None, np.ones(len(bucket_of))):
        plan = TrainPlan(bucket_of, seed, batch, repeats)
        assert [plan.batch_at(step) for step in range(len(expected))] == expected


factors = st.one_of(st.just(1.0), st.floats(1, 6))


@given(
    st.lists(st.tuples(st.integers(-1, 2), factors), min_size=1, max_size=15),
    st.integers(1, 7),
    st.integers(0, 2**31 - 1),
)
def test_repeated_rows_are_drawn_as_often_as_asked(rows, batch, seed):
    bucket_of, repeats = (np.array(values) for values in zip((0, 1.0), *rows, strict=True))
    plan = TrainPlan(bucket_of, seed, batch, repeats)
    epochs, drawn = 6, collections.defaultdict(list)
    step = 0
    while plan.epoch_of(step) < epochs:
        bucket, draws = plan.batch_at(step)
        assert [bucket_of[d.row] for d in draws] == [bucket] * batch
        for draw in draws:
            drawn[draw.row].append(draw.occurrence)
        step += 1
    held_back = collections.Counter()
    for row in np.flatnonzero(bucket_of >= 0).tolist():
        # each draw of a row has its own number, and so its own augmentation
        assert len(set(drawn[row])) == len(drawn[row])
        held_back[int(bucket_of[row])] += repeats[row] * epochs - len(drawn[row])
    assert set(drawn) <= set(np.flatnonzero(bucket_of >= 0).tolist())
    for bucket, missing in held_back.items():
        members = int((bucket_of == bucket).sum())
        # less than one for each row, and less than a batch at the end
        assert -members < missing < members + batch
    assert plan.batch_at(step // 2) == TrainPlan(bucket_of, seed, batch, repeats).batch_at(
        step // 2
    )


def test_an_epoch_shows_a_row_its_factor_rounded_down_or_up():
    repeats = np.array([1, 1.25, 2.5, 3, 7.75] * 8)
    plan = TrainPlan(np.zeros(len(repeats), int), 5, 1, repeats)
    counts, step = np.zeros((40, len(repeats)), int), 0
    while (epoch := plan.epoch_of(step)) < 40:
        (draw,) = plan.batch_at(step)[1]
        counts[epoch, draw.row] += 1
        step += 1
    assert (counts >= np.floor(repeats)).all()
    assert (counts <= np.ceil(repeats)).all()
    np.testing.assert_array_equal(counts.sum(0), 40 * repeats)  # quarters: exact after 40 epochs
    # rows of one factor do not round up in the same epochs
    assert len({tuple(column) for column in counts[:, 1::5].T}) == 4


def test_a_far_step_is_found_at_once_and_plans_travel_to_workers():
    plan = TrainPlan(np.arange(1000) % 2, 0, 16)
    assert plan.epoch_of(10**9) == 10**9 * 16 // 1000
    assert pickle.loads(pickle.dumps(plan)).batch_at(10**9) == plan.batch_at(10**9)
    plan = TrainPlan(np.arange(1000) % 2, 0, 16, np.full(1000, 1.5))
    assert plan.epoch_of(10**9) == pytest.approx(10**9 * 16 / 1500, abs=2)
    assert pickle.loads(pickle.dumps(plan)).batch_at(10**9) == plan.batch_at(10**9)


def test_seeds_and_epochs_shuffle_anew():
    def rows(seed, step):
        return [d.row for d in TrainPlan(np.zeros(64, int), seed, 32).batch_at(step)[1]]

    assert rows(0, 0) != rows(1, 0)
    # not only the order of the batches, what they hold
    epochs = [{frozenset(rows(0, step)) for step in (first, first + 1)} for first in (0, 2)]
    assert epochs[0] != epochs[1]
    assert sorted(rows(0, 0) + rows(0, 1)) == list(range(64))


@given(bucket_lists, st.integers(1, 9))
def test_evaluation_shows_every_row_once(bucket_of, batch):
    rows = []
    for bucket, members in evaluation_batches(bucket_of, batch):
        assert len(members) == batch
        real = [r for r in members if r is not None]
        assert all(bucket_of[r] == bucket for r in real)
        rows += real
    assert sorted(rows) == list(range(len(bucket_of)))


def test_padding_share_by_hand():
    # 800 × 1067 and 800 × 800 in 800 × 1344
    share = padding_share(place_all(np.array([[480, 640], [500, 500]]), COCO, 800, 1333), COCO)
    assert share == pytest.approx(1 - (1067 + 800) / (2 * 1344))
