"""Batches: the same on any number of hosts and workers, from any step."""

import os
import pickle
import threading

import jax
import numpy as np
import pytest

from retina_jax.data import loader as loader_module
from retina_jax.data.data_set import open_split
from retina_jax.data.loader import EvaluationLoader, TrainLoader, decoding_threads
from retina_jax.errors import UserError
from retina_jax.prepare.shapes import open_data_set


@pytest.fixture
def train_split(tiny_config):
    directory = open_data_set(tiny_config.data.dir, "shapes")
    return open_split(directory, "train")


@pytest.fixture(params=["", "aerial"])
def augmentation(request, tiny_config):
    tiny_config.data.augmentation = request.param


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_batches_have_the_shapes_they_promise(train_split, tiny_config):
    (batch,) = TrainLoader(train_split, tiny_config).batches(0, 1)
    assert batch.images.shape == (8, 128, 128, 3)
    assert batch.images.dtype == np.uint8
    assert batch.ground_truth.boxes.shape == (8, 16, 4)
    np.testing.assert_array_equal(
        batch.ground_truth.valid.sum(1), train_split.box_counts[batch.index]
    )


@pytest.mark.usefixtures("augmentation")
@pytest.mark.parametrize("first", [1, 3, 7])
def test_a_resumed_loader_goes_on_where_the_first_would(train_split, tiny_config, first):
    loader = TrainLoader(train_split, tiny_config)
    whole = list(loader.batches(0, 9))
    for expected, batch in zip(whole[first:], loader.batches(first, 9), strict=True):
        assert_same(batch, expected)


@pytest.mark.usefixtures("augmentation")
def test_the_data_can_have_a_seed_of_their_own(train_split, tiny_config):
    """Networks with different initial weights then see the same images with the same flips."""

    def first(seed, of_data):
        tiny_config.seed, tiny_config.data.seed = seed, of_data
        (batch,) = TrainLoader(train_split, tiny_config).batches(0, 1)
        return batch

    assert_same(first(1, 0), first(0, -1))
    assert (first(1, -1).index != first(0, -1).index).any()


def test_hosts_share_one_batch(train_split, tiny_config):
    (whole,) = TrainLoader(train_split, tiny_config).batches(4, 5)
    parts = [next(TrainLoader(train_split, tiny_config, p, 4).batches(4, 5)) for p in range(4)]
    assert_same(whole, jax.tree.map(lambda *p: np.concatenate(p), *parts))


def test_workers_change_nothing(train_split, tiny_config):
    tiny_config.data.augmentation = "aerial"
    expected = list(TrainLoader(train_split, tiny_config).batches(2, 6))
    tiny_config.data.num_workers = 2
    for batch, other in zip(TrainLoader(train_split, tiny_config).batches(2, 6), expected,
                            strict=True):  # fmt: skip
        assert_same(batch, other)


def test_flips_differ_between_epochs_and_can_be_off(train_split, tiny_config):
    def pictures():
        seen = {}
        for batch in TrainLoader(train_split, tiny_config).batches(0, 24):  # eight epochs
            for row, image in zip(batch.index.tolist(), batch.images, strict=True):
                seen.setdefault(row, set()).add(image.tobytes())
        return seen

    counts = [len(images) for images in pictures().values()]
    assert len(counts) == 24
    assert sum(n == 2 for n in counts) >= 20  # as it is and mirrored: each 1 in 128 misses
    tiny_config.data.flip = False
    assert {len(images) for images in pictures().values()} == {1}


def test_turns_are_the_four_quarters_equally_often(train_split, tiny_config):
    def pictures():
        return np.concatenate([b.images[np.argsort(b.index)] for b in
                               TrainLoader(train_split, tiny_config).batches(0, 12)])  # fmt: skip

    tiny_config.data.flip = False
    upright = pictures()
    tiny_config.data.turn = True
    quarters = [
        next(k for k in range(4) if np.array_equal(np.rot90(before, k), now))
        for before, now in zip(upright, pictures(), strict=True)
    ]  # the images are square, and shown at their own size
    assert np.bincount(quarters).min() > 12  # of 96


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_shows_every_row_once(tiny_config, processes):
    split = open_split(open_data_set(tiny_config.data.dir, "shapes"), "validation")
    rows = []
    for process in range(processes):
        loader = EvaluationLoader(split, tiny_config, process, processes)
        batches = list(loader)
        assert len(batches) == len(loader) == 2
        for batch in batches:
            assert len(batch.index) == 8 // processes
            rows += batch.index[batch.example_mask].tolist()
    assert sorted(rows) == list(range(10))


def test_more_boxes_than_the_padding_is_an_error_with_the_number(train_split, tiny_config):
    tiny_config.data.max_boxes = 2
    most = train_split.box_counts.max()
    with pytest.raises(UserError, match=rf"set --config.data.max_boxes={most}"):
        TrainLoader(train_split, tiny_config)


def test_images_without_boxes_are_left_out_if_asked_and_counted(two_aspects):
    from experiments.custom import get_config

    config = get_config()
    config.data.dir = str(two_aspects)
    config.data.short_side, config.data.long_side = 96, 128
    config.data.buckets = ((96, 128), (128, 96))
    split = open_split(open_data_set(str(two_aspects), ""), "train")
    empty = np.flatnonzero(split.box_counts == 0)
    assert len(empty)
    assert TrainLoader(split, config).left_out == 0
    config.data.drop_empty = True
    loader = TrainLoader(split, config)
    assert loader.left_out == len(empty)
    drawn = np.concatenate([batch.index for batch in loader.batches(0, 6)])
    assert not np.isin(drawn, empty).any()
    assert set(drawn) == set(np.flatnonzero(split.box_counts > 0))
    seen = [b.index[b.example_mask] for b in EvaluationLoader(split, config)]
    assert len(np.concatenate(seen)) == len(split)  # evaluation shows all


def test_batches_know_the_sizes_of_their_images(two_aspects):
    from experiments.custom import get_config

    config = get_config()
    config.data.dir = str(two_aspects)
    config.data.short_side, config.data.long_side = 96, 128
    config.data.buckets = ((96, 128), (128, 96))
    config.eval.batch_size = 16
    split = open_split(open_data_set(str(two_aspects), ""), "train")
    fillers = 0
    for loader in (TrainLoader(split, config).batches(0, 3), EvaluationLoader(split, config)):
        for batch in loader:
            real = batch.example_mask
            np.testing.assert_array_equal(
                batch.original_sizes[real], split.sizes[batch.index[real]]
            )
            assert batch.original_sizes.dtype == np.int32
            np.testing.assert_array_equal(batch.original_sizes[~real], batch.sizes[~real])
            fillers += int((~real).sum())
    assert fillers


def patch_cores(monkeypatch, cores):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)


@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [(1, 0, 1), (2, 0, 2), (16, 0, 16), (100, 0, 16), (2, 2, 1), (2, 4, 1), (16, 2, 8),
     (100, 2, 16), (100, 10, 10)],
)  # fmt: skip
def test_a_process_decodes_on_its_share_of_the_cores(monkeypatch, cores, workers, threads):
    patch_cores(monkeypatch, cores)
    assert decoding_threads(workers) == threads
    monkeypatch.setattr(os, "cpu_count", lambda: 1000)  # fewer are granted than there are
    assert decoding_threads(workers) == threads


@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [(2, 0, 2), (16, 0, 16), (100, 0, 16), (16, 2, 8), (100, 2, 16), (2, 2, 1)],
)
def test_a_batch_is_decoded_by_that_many_threads(
    train_split, tiny_config, monkeypatch, cores, workers, threads
):
    patch_cores(monkeypatch, cores)
    tiny_config.data.num_workers = workers
    tiny_config.train.batch_size = 16
    loader = pickle.loads(pickle.dumps(TrainLoader(train_split, tiny_config)))  # as to a worker
    decode, meeting = loader_module.decode_image, threading.Barrier(threads, timeout=300)
    seen = set()

    def meet(encoded):
        seen.add(threading.current_thread().name)
        meeting.wait()  # passes when as many pictures are being decoded at once
        return decode(encoded)

    monkeypatch.setattr(loader_module, "decode_image", meet)
    for step in range(3):
        loader._read(step)
    assert len(seen) == threads


@pytest.mark.parametrize("cores", [1, 3, 16])
def test_threads_change_nothing(train_split, tiny_config, monkeypatch, cores):
    tiny_config.data.train_short_sides = (96, 128)
    tiny_config.data.scale_range = (0.5, 2.0)
    tiny_config.data.color_jitter = (0.4, 0.4, 0.4, 0.1)
    patch_cores(monkeypatch, 2)
    expected = list(TrainLoader(train_split, tiny_config).batches(0, 6))
    patch_cores(monkeypatch, cores)
    for batch, other in zip(
        TrainLoader(train_split, tiny_config).batches(0, 6), expected, strict=True
    ):
        assert_same(batch, other)


@pytest.mark.parametrize("cores", [2, 16, 100])
@pytest.mark.parametrize("kind", [TrainLoader, EvaluationLoader])
def test_four_batches_are_ready_whatever_the_cores(
    train_split, tiny_config, monkeypatch, cores, kind
):
    patch_cores(monkeypatch, cores)
    tiny_config.eval.batch_size = tiny_config.train.batch_size = 1
    loader = kind(train_split, tiny_config)
    begun, finished = [], threading.Semaphore(0)
    read = loader._read

    def counted(number):
        begun.append(number)
        batch = read(number)
        finished.release()
        return batch

    loader._read = counted
    batches = loader.batches(0, 24) if kind is TrainLoader else iter(loader)
    for taken in range(1, 20):
        next(batches)
        # four more end, so four were asked for, and no fifth was
        assert all(finished.acquire(timeout=300) for _ in range(5))
        assert len(begun) == taken + 4
        finished.release(4)


def test_where_pictures_lie_is_computed_once_for_a_loader(train_split, tiny_config, monkeypatch):
    calls = []
    place_all = loader_module.place_all
    monkeypatch.setattr(
        loader_module, "place_all", lambda *a, **k: calls.append(1) or place_all(*a, **k)
    )
    TrainLoader(train_split, tiny_config)
    assert len(calls) == 1
    EvaluationLoader(train_split, tiny_config)
    assert len(calls) == 2
