"""What the loader relies on in Grain. A test that fails after an update says where to look."""

import os

import grain
import numpy as np
import pytest
from absl import flags

from retina_jax.data import grain_private, handover

QUEUE = "grain/_src/python/dataset/transformations/process_prefetch.py"
COPY = "grain/_src/python/ipc/shared_memory_array.py"


def over_a_worker(function, count=3):
    grain_private.parse_flags()
    elements = grain.MapDataset.range(count).map(function).to_iter_dataset()
    return iter(elements.mp_prefetch(grain.MultiprocessingOptions(num_workers=1)))


def end_at_one(number):
    if number == 1:
        os._exit(5)
    return number


def test_the_death_of_a_worker_is_told_from_other_errors():
    iterator = over_a_worker(end_at_one)
    with pytest.raises(RuntimeError) as caught:
        list(iterator)
    iterator.close()
    where = f"look at ProcessPrefetchDatasetIterator.__next__ in {QUEUE}: {caught.value}"
    assert grain_private.is_death_of_worker(caught.value), where
    assert grain_private.exit_code_in(caught.value) == 5, where
    assert not grain_private.is_death_of_worker(RuntimeError("another"))
    assert grain_private.exit_code_in(RuntimeError("terminated unexpectedly")) is None


class Traveller:
    """Says in which process it was pickled and unpickled."""

    def __init__(self, sent=None):
        self.sent = sent

    def __reduce__(self):
        return Traveller.arrived, (os.getpid(),)

    @staticmethod
    def arrived(sent):
        return Traveller((sent, os.getpid(), os.path.exists(f"/proc/{sent}/fd/0")))


def test_elements_that_are_no_arrays_cross_by_pickle_while_their_worker_lives():
    for element in over_a_worker(lambda number: Traveller()):
        sender, reader, alive = element.sent
        where = f"look at _copy_leaf_to_shm in {COPY}, and at the queue in {QUEUE}"
        assert sender != os.getpid(), where
        assert reader == os.getpid(), where
        assert alive, where


def read(number):
    block = handover.Block((2, 3), np.uint8)
    block.array[...] = number
    return handover.Parcel({"images": block.array}, block)


def test_parcels_arrive_to_the_last():
    seen = [handover.received(tree)["images"] for tree in over_a_worker(read, 20)]
    assert [int(images[1, 2]) for images in seen] == list(range(20)), f"look at {QUEUE}"


def test_flags_count_as_parsed_once_and_for_all():
    grain_private.parse_flags()
    assert flags.FLAGS.is_parsed(), "Grain's worker reads absl flags"
    grain_private.parse_flags()
