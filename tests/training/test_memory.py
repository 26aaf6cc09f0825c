"""Memory of the host and of devices that tell theirs."""

import types

import numpy as np

from retina_jax.training.memory import memory_in_use


def device(**statistics):
    return types.SimpleNamespace(memory_stats=lambda: statistics or None)


def test_memory_of_the_host_grows_by_what_is_taken():
    before = memory_in_use([])
    assert before.keys() == {"host_gib"}
    taken = np.ones(2**23)  # 64 MiB
    grown = memory_in_use([])["host_gib"] - before["host_gib"]
    assert 0.05 < grown < 0.2
    del taken


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
