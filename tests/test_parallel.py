"""The seam of devices: split and join, and batches that cannot be shared."""

import numpy as np
import pytest

from retina_jax.errors import UserError
from retina_jax.parallel import Devices, fetch, join, prefetch


def test_shard_and_join_are_inverse():
    devices = Devices.local(4)
    tree = {"a": np.arange(24).reshape(8, 3), "b": np.arange(8)}
    sharded = devices.shard(tree)
    assert sharded["a"].shape == (4, 2, 3)
    back = join(fetch(sharded))
    for name in tree:
        np.testing.assert_array_equal(back[name], tree[name])


def test_a_batch_that_cannot_be_shared_names_one_that_can():
    devices = Devices.local(4)
    assert devices.check_batch(8, "train.batch_size") == 8
    with pytest.raises(
        UserError, match=r"=6 must be a multiple of the 4 devices; set .*batch_size=8"
    ):
        devices.check_batch(6, "train.batch_size")
    with pytest.raises(
        UserError, match=r"=1 must be a multiple of the 4 devices; set .*batch_size=4"
    ):
        devices.check_batch(1, "train.batch_size")


def test_a_share_that_micro_batches_cannot_split_names_one_that_they_can():
    devices = Devices.local(4)
    assert devices.check_batch(24, "train.batch_size", 3) == 24
    with pytest.raises(
        UserError,
        match=r"train\.batch_size=16 must be a multiple of the 4 devices × 3 micro-batches "
        r"\(config\.train\.accumulate\); set --config\.train\.batch_size=12$",
    ):
        devices.check_batch(16, "train.batch_size", 3)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_ahead_gives_all_in_order_and_puts_early(count):
    put = []
    for item in prefetch(range(count), lambda i: put.append(i) or i):
        assert len(put) == min(count, item + 3)
    assert put == list(range(count))
