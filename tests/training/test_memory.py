"""Memory of the host and of devices that tell theirs."""

import mmap
import types

from retina_jax.training.memory import memory_in_use


def device(**statistics):
    return types.SimpleNamespace(memory_stats=lambda: statistics or None)


def test_memory_of_the_host_grows_by_what_is_taken():
    before = memory_in_use([])
    assert before.keys() == {"host_gib"}
    size = 256 * 2**20
    # straight from the system: malloc may hand out pages that it still holds
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as taken:
        for page in range(0, size, mmap.PAGESIZE):
            taken[page] = 1
        grown = memory_in_use([])["host_gib"] - before["host_gib"]
    assert 0.2 < grown < 0.4


def test_the_fullest_device_counts_and_those_that_do_not_tell_are_left_out():
    found = memory_in_use(
        [
            device(bytes_in_use=2**30, peak_bytes_in_use=5 * 2**30),
            device(),
            device(bytes_in_use=3 * 2**30),
        ]
    )
    assert (found["device_gib"], found["device_peak_gib"]) == (3, 5)
    assert memory_in_use([device()]).keys() == {"host_gib"}
