"""What the tests of several processes compare is the program's own text."""

import random

import pytest

from tests.faults.processes import said


def of_gloo(rank):
    return ["[Gloo] Rank ", str(rank), " is connected to ", "3", " peer ranks. ",
            "Expected number of connected peer ranks is : ", "3", "\n"]  # fmt: skip


def test_the_halves_of_a_line_written_by_two_threads_are_nothing_of_ours():
    assert said("[Gloo] Rank 2[Gloo] Rank 3\n is connected to 3 peer ranks. "
                "Expected number of connected peer ranks is : 3") == ""  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_two_threads_of_gloo_in_any_order_leave_our_lines(seed):
    source = random.Random(seed)
    threads = [of_gloo(2), of_gloo(3)]
    written = []
    while any(threads):
        written.append(source.choice([pieces for pieces in threads if pieces]).pop(0))
    before, after = "resuming from step 3 of run", "error: 3 hosts expected, 2 found"
    log = "E1127 00:03:16.1 12 client.cc:1] \n"
    assert said(f"{before}\n{''.join(written)}{log}{after}\n") == f"{before}\n{after}"
