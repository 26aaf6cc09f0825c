"""Batches on their way from a worker: memory without a name, opened once, closed then."""

import gc
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from retina_jax.data import handover
from retina_jax.errors import UserError


def open_blocks():
    """Files of blocks that this process has open, by number; not those that were opened."""
    gc.collect()  # other tests' blocks may wait to be freed, at any later moment
    handover.Block((1,), np.uint8)  # making one closes them
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            name = os.readlink(entry)
        except FileNotFoundError:  # closed meanwhile
            continue
        if name.startswith("/memfd:retina_jax"):
            found.append(entry.name)
    return found


def parcel_of(value, shape=(5, 7, 3)):
    block = handover.Block(shape, np.uint8)
    block.array[...] = value
    return handover.Parcel({"images": block.array, "rest": np.arange(4), "name": "x"}, block)


def test_a_tree_arrives_whole_and_its_images_can_be_written():
    tree = handover.received(pickle.loads(pickle.dumps(parcel_of(9))))
    np.testing.assert_array_equal(tree["images"], np.full((5, 7, 3), 9, np.uint8))
    np.testing.assert_array_equal(tree["rest"], np.arange(4))
    assert tree["name"] == "x"
    tree["images"][0] = 1


def test_the_message_is_one_write_and_the_images_are_not_copied():
    shape = (16, 800, 1344, 3)
    block = handover.Block(shape, np.uint8)
    truth = np.zeros((16, 300, 4), np.float32)
    sent = pickle.dumps(handover.Parcel({"images": block.array, "boxes": truth}, block))
    assert len(sent) < 4096  # PIPE_BUF: a longer one could be cut short by a kill
    images = pickle.loads(sent)["images"]
    file = os.open(f"/proc/self/fd/{block.file}", os.O_RDWR)
    os.pwrite(file, b"\7", 12345)  # what the file says, the array shows
    os.close(file)
    assert images.reshape(-1)[12345] == 7


def test_a_block_is_kept_open_until_it_is_opened_and_no_longer():
    before = len(open_blocks())
    sent = pickle.dumps(parcel_of(3))
    assert len(open_blocks()) == before + 1
    tree = pickle.loads(sent)
    assert len(open_blocks()) == before + 1  # the reader's: it lives as long as the array
    del tree
    assert len(open_blocks()) == before


def test_what_is_never_sent_is_freed():
    before = len(open_blocks())
    parcel = parcel_of(1)
    assert len(open_blocks()) == before + 1
    del parcel
    assert len(open_blocks()) == before


def _send_and_end(pipe, code):
    pipe.send(parcel_of(1))
    pipe.close()
    os._exit(code)


def test_a_sender_that_has_ended_is_an_error_and_its_exit_code_is_known():
    ours, theirs = multiprocessing.Pipe(duplex=False)
    sender = multiprocessing.get_context("fork").Process(target=_send_and_end, args=(theirs, 3))
    sender.start()
    os.waitid(os.P_PID, sender.pid, os.WEXITED | os.WNOWAIT)
    item = ours.recv()  # raises nothing: Grain does this when it closes, too
    with pytest.raises(handover.SenderDiedError) as caught:
        handover.received(item)
    assert caught.value.pid == sender.pid
    assert handover.exit_code(sender.pid) == 3
    sender.join()
    assert sender.exitcode == 3  # left for multiprocessing to reap
    assert handover.exit_code(sender.pid) is None


def test_another_file_under_a_dead_ones_number_is_not_taken_for_it():
    block = handover.Block((2, 2), np.uint8)
    function, (pid, number, inode, *layout) = handover.Parcel(block.array, block).__reduce__()
    with pytest.raises(handover.SenderDiedError):
        handover.received(function(pid, number, inode + 1, *layout))


def patch_free(monkeypatch, shared=2**40, memory=2**40):
    usage = type("Usage", (), {"free": shared})
    monkeypatch.setattr(handover.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(handover, "free_memory", lambda: memory)


def test_too_little_shared_memory_is_an_error_with_the_size(monkeypatch):
    patch_free(monkeypatch, shared=64 * 1024)
    with pytest.raises(UserError) as caught:
        handover.check_room(8, 4, 10**6)
    assert str(caught.value) == (
        "config.data.num_workers=8 needs 2.0 MiB in /dev/shm, but only 0.1 MiB is free; enlarge "
        "it (docker run --shm-size=2m) or set --config.data.num_workers=0"
    )


def test_too_little_memory_is_an_error_with_the_size(monkeypatch):
    patch_free(monkeypatch, memory=300 * 2**20)
    with pytest.raises(UserError) as caught:
        handover.check_room(2, 4, 49 * 2**20)
    assert str(caught.value) == (
        "config.data.num_workers=2 needs 392.0 MiB of memory for 4 batches of 49.0 MiB per worker, "
        "but only 300.0 MiB is free; lower --config.data.num_workers or "
        "--config.train.batch_size"
    )
    patch_free(monkeypatch, memory=393 * 2**20)
    handover.check_room(2, 4, 49 * 2**20)


def test_free_memory_is_what_the_system_says():
    free = handover.free_memory()
    with open("/proc/meminfo") as lines:
        total = int(next(lines).split()[1]) * 1024
    assert 0 < free <= total
